"""Made pictures for the tests of the archives."""

import io

import numpy as np
from PIL import Image


def picture(seed, width=80, height=60):
    """A picture of smooth blotches, unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    blotches = rng.integers(60, 200, (18, 24, 1)) + rng.integers(-15, 15, (18, 24, 3))
    return Image.fromarray(blotches.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **options):
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
