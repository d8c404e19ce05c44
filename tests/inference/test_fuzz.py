"""A valid submission from any test folder. `make fuzz` tries thousands of broken images and tables; the suite tries some."""

import io
import os
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation.dry_run import checked_submission
from inference.images import ImageStore, find_images
from inference.schema import ID, PATIENT, TEST_COLUMNS
from inference.submission import main

IMAGES, TABLES = int(os.environ.get("FUZZ_IMAGES", "100")), int(os.environ.get("FUZZ_TABLES", "25"))
#: Cells that turn up in tables, or should not.
CELLS = (
    "",
    "NA",
    "nan",
    "None",
    "inf",
    "-inf",
    "1e400",
    "-1e308",
    "0",
    "-1",
    "1,5",
    "1.5.2",
    "TRUE",
    " ",
    "é漢字",
    "'",
    "9" * 400,
)


def scored(competition, artifacts, tmp_path):
    """The submission of a folder, checked as Kaggle checks it: ids of the sample submission, finite numbers."""
    output = tmp_path / "submission.csv"
    assert main(["--competition", str(competition), "--artifacts", str(artifacts), "--output", str(output)]) == 0
    return checked_submission(output, pd.read_csv(competition / "sample_submission.csv", dtype="str")[ID].tolist())


# Images


def cut(rng, image):
    return image[: rng.integers(len(image))]


def bent(rng, image):
    content = np.frombuffer(image, "uint8").copy()
    content[rng.integers(len(content), size=rng.integers(1, 60))] = rng.integers(256)
    return content.tobytes()


def lacking(rng, image):
    start, stop = np.sort(rng.integers(len(image), size=2))
    return image[:start] + image[stop:]


def stretched(rng, image):
    place = rng.integers(len(image))
    return image[:place] + rng.bytes(rng.integers(1, 3000)) + image[place:]


def blank(rng, image):
    start, stop = np.sort(rng.integers(len(image), size=2))
    return image[:start] + bytes(int(stop - start)) + image[stop:]


def boasting(rng, image):
    """Other sides in the header, up to 65,535."""
    place = image.find(b"\xff\xc0") + 5
    return image[:place] + rng.bytes(4) + image[place + 4 :]


def noise(rng, image):
    return b"\xff\xd8\xff" * int(rng.integers(2)) + rng.bytes(rng.integers(4000))


def another_format(rng, image):
    buffer = io.BytesIO()
    kind = rng.choice(["PNG", "GIF", "BMP", "WEBP", "TIFF", "JPEG"])
    mode = rng.choice(["RGB", "L"]) if kind != "JPEG" else rng.choice(["CMYK", "L", "YCbCr"])
    Image.open(io.BytesIO(image)).convert(mode).resize(tuple(rng.integers(1, 300, 2))).save(buffer, kind)
    return bent(rng, buffer.getvalue()) if rng.random() < 0.5 else buffer.getvalue()


HARM = (cut, bent, lacking, stretched, blank, boasting, noise, another_format)


@pytest.mark.usefixtures("small_networks")
def test_no_image_however_broken_keeps_the_kernel_from_its_submission(small_artifacts, mounted, tmp_path, capsys):
    rng = np.random.default_rng(0)
    metadata = pd.read_csv(mounted / "test-metadata.csv", dtype="str")
    store = ImageStore(find_images(mounted, "test"))
    sound = [store.read(isic_id) for isic_id in metadata[ID]]
    store.close()
    folder = tmp_path / "competition"
    folder.mkdir()
    ids = [f"ISIC_9{number:06d}" for number in range(IMAGES)]
    rows = metadata.iloc[rng.integers(len(metadata), size=IMAGES)].assign(**{ID: ids})
    rows.to_csv(folder / "test-metadata.csv", index=False)
    pd.DataFrame({ID: ids, "target": 0.3}).to_csv(folder / "sample_submission.csv", index=False)
    with h5py.File(folder / "test-image.hdf5", "w") as file:
        for number, isic_id in enumerate(ids):
            image = HARM[number % len(HARM)](rng, sound[rng.integers(len(sound))])
            file.create_dataset(isic_id, data=np.void(image) if image else h5py.Empty("S1"))
    scored(folder, small_artifacts, tmp_path)
    log = capsys.readouterr().out
    assert "network_stopped" not in log
    image_scored = int(log.rsplit("rows, ", 1)[1].split(" of ")[0].replace(",", ""))
    assert 0.1 * IMAGES < image_scored < 0.9 * IMAGES  # some were harmed beyond recognition, some were not


# Tables


def mutated(rng, table):
    """The same table after up to six accidents; isic_id stays, because without it there is nothing to submit."""
    table = table.copy()
    for _ in range(rng.integers(1, 7)):
        name, accident = rng.choice([column for column in table if column != ID]), rng.integers(11)
        some = rng.random(len(table)) < rng.choice([0.1, 0.5, 1.0])
        if accident == 0:
            table = table.drop(columns=name)
        elif accident == 1:
            table = table.rename(columns={name: name.upper() + " "})
        elif accident == 2:
            table = table[rng.permutation(table.columns)]
        elif accident == 3:
            table[name] = ""
        elif accident <= 6:
            table.loc[some, name] = rng.choice(CELLS, int(some.sum()))
        elif accident == 7:
            table = pd.concat([table, table[some]]).sample(frac=1, random_state=int(rng.integers(1000)))
        elif accident == 8:
            table = table.assign(**{f"new_{rng.integers(9)}": "x"})
        elif accident == 9:
            table.loc[some, ID] = rng.choice(["", "ISIC_0000000", "../../etc", "ISIC 5"], int(some.sum()))
        elif PATIENT in table:
            table[PATIENT] = rng.choice(["IP_1", "", "NA"], len(table))
        if table.columns.size < 3:
            break
    return table


@pytest.mark.parametrize("seed", range(max(1, TABLES // 25)))
def test_no_table_however_garbled_keeps_the_kernel_from_its_submission(tabular_only, mounted, tmp_path, seed):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "competition"
    folder.mkdir()
    shutil.copy(mounted / "sample_submission.csv", folder)
    table = pd.read_csv(mounted / "test-metadata.csv", dtype="str", keep_default_na=False)
    assert list(table) == [name for name in TEST_COLUMNS if name in table]
    for _ in range(25):
        mutated(rng, table).to_csv(folder / "test-metadata.csv", index=False)
        assert scored(folder, tabular_only, tmp_path).between(0, 1).all()
