"""Crops drawn from a bank: some thousand rendered ones, each turned and mirrored, for datasets of the competition's size.

No crop is rendered or encoded for its lesion, which takes a tenth of the time. The crop shows the lesion's texture, to the
distance of neighbours in the bank, but size, shape and colours of another lesion. A comment with the lesion's id makes each
file another one, as in the competition's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from train.synthetic.images import JPEG_QUALITY

BANK = 4_096  # rendered crops
NEIGHBOURS = 4  # a lesion gets one of so many crops on either side of its texture
COMMENT = b"\xff\xfe"  # the marker of a comment (ITU-T T.81, table B.1)


@dataclass(frozen=True)
class Bank:
    """Rendered crops in the order of their texture.

    Args:
        jpegs: of one or more crops, each ``turned``.
        texture: strength of theirs, ascending, shape (crops,).
    """

    jpegs: Sequence[Sequence[bytes]]
    texture: NDArray[np.float64]

    def crops(self, ids: Sequence[str], texture: NDArray[np.float64], seed: int) -> Iterator[bytes]:
        """JPEG bytes for each lesion, drawn from ``seed`` among the crops of nearly its texture.

        Args:
            ids: the lesions'.
            texture: strength of theirs, shape (lesions,).
            seed: of the draw, with their number.
        """
        rng = np.random.default_rng([seed, len(ids)])
        near = self.texture.searchsorted(texture) + rng.integers(-NEIGHBOURS, NEIGHBOURS, len(ids))
        placements = rng.integers(len(self.jpegs[0]), size=len(ids))
        for isic_id, crop, placement in zip(ids, near.clip(0, len(self.jpegs) - 1), placements, strict=True):
            yield with_comment(self.jpegs[crop][placement], isic_id)


def bank_rows(texture: NDArray[np.float64], size: int = BANK) -> NDArray[np.intp]:
    """Positions of the lesions to render for a bank: at most ``size``, evenly spaced in the order of their texture."""
    order = np.argsort(texture, kind="stable")
    return order[np.linspace(0, len(order) - 1, min(size, len(order))).round().astype(np.intp)]


def turned(jpeg: bytes) -> list[bytes]:
    """A crop in the eight ways in which a square can lie on itself, the first as it is."""
    image, found = Image.open(io.BytesIO(jpeg)), [jpeg]
    for placement in Image.Transpose:
        file = io.BytesIO()
        image.transpose(placement).save(file, "JPEG", quality=JPEG_QUALITY)
        found.append(file.getvalue())
    return found


def with_comment(jpeg: bytes, text: str) -> bytes:
    """The same picture with a comment behind its first segment."""
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:end] + COMMENT + (2 + len(text)).to_bytes(2, "big") + text.encode("ascii") + jpeg[end:]
