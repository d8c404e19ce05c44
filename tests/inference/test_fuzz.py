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
from inference.schema import ID, NUMBERS, PATIENT, TEST_COLUMNS, read_metadata, read_metadata_leniently
from inference.submission import main
from scale.batch_scoring import main as score_batch
from utils import InputError

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
    where = ["--competition", str(competition), "--artifacts", str(artifacts), "--output", str(output)]
    assert main([*where, "--scores", str(tmp_path / "scores.csv")]) == 0
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


# Accidents of the file; the header stays whole: without it there is nothing to submit.


def commas(rng, lines):
    end = b"," * int(rng.integers(1, 3))
    return [lines[0], *(line + end for line in lines[1:])]


def other_lengths(rng, lines):
    def change(line):
        kind = rng.integers(8)
        return line + b",extra" if kind == 0 else line.rpartition(b",")[0] if kind == 1 else line

    return [lines[0], *map(change, lines[1:])]


def blank_lines(rng, lines):
    blanks = (b"", b"  ", b"," * lines[0].count(b","))
    return [text for line in lines for text in ([line, blanks[rng.integers(3)]] if rng.random() < 0.2 else [line])]


def cut_off(rng, lines):
    rest = b"\n".join(lines[1:])
    return [lines[0], rest[: rng.integers(len(rest) + 1)]]


def wrong_bytes(rng, lines):
    rest = bytearray(b"\n".join(lines[1:]))
    for place in rng.integers(max(1, len(rest)), size=rng.integers(1, 9)) if rest else ():
        rest[place] = rng.choice([0, 10, 13, 34, 44, 0xE9, 0xFF, rng.integers(256)])
    return [lines[0], bytes(rest)]


def quotes(rng, lines):
    def change(line):
        kind, cells = rng.integers(12), line.split(b",")
        cell = rng.integers(len(cells))
        cells[cell] = {0: b'"' + cells[cell], 1: cells[cell] + b'"', 2: b'"%s\n"' % cells[cell].strip(b'"')}.get(
            int(kind), cells[cell]
        )
        return b",".join(cells)

    return [lines[0], *map(change, lines[1:])]


def repeated_columns(rng, lines):
    return [line + b"," + line.split(b",")[0] for line in lines]


ACCIDENTS = (commas, other_lengths, blank_lines, cut_off, wrong_bytes, quotes, repeated_columns)
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16")


def garbled(rng, table):
    """The bytes of a file of the table, after up to three accidents."""
    lines = mutated(rng, table).to_csv(index=False).encode().splitlines()
    for accident in rng.choice(ACCIDENTS, rng.integers(4)):
        lines = accident(rng, lines)
    content = rng.choice([b"\n", b"\n", b"\r\n", b"\r"]).join(lines) + rng.choice([b"", b"\n"])
    encoding = rng.choice(ENCODINGS)
    return content if encoding == "utf-8" else content.decode("utf-8", "replace").encode(encoding)


def check_training(path, kernel):
    """Training refuses the file in a sentence, or reads what the kernel reads."""
    try:
        strict = read_metadata(path, labelled=False)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert strict[ID].tolist() == kernel[ID].tolist()
    assert strict[PATIENT].tolist() == kernel[PATIENT].tolist()
    for name in set(NUMBERS) & set(strict):
        np.testing.assert_array_equal(strict[name], kernel[name])


def check_batch_scoring(path, artifacts, out, kernel_scores):
    """Batch scoring refuses the file in a sentence, or gives the kernel's scores; returns whether it did."""
    try:
        assert score_batch(["--input", str(path), "--artifacts", str(artifacts), "--out", str(out), "--parts", "3"]) == 0
    except InputError as error:
        assert "\n" not in str(error)
        return False
    parts = [pd.read_parquet(part) for part in sorted(out.glob("scores-*.parquet"))]
    found = pd.concat(parts).set_index(ID)["tabular"] if parts else pd.Series(dtype=float)
    assert sorted(found.index) == sorted(kernel_scores.index)
    np.testing.assert_allclose(found.loc[kernel_scores.index], kernel_scores["tabular"], atol=1e-6)
    return True


@pytest.mark.parametrize("seed", range(max(1, TABLES // 25)))
def test_no_table_however_garbled_keeps_the_kernel_from_its_submission(tabular_only, mounted, tmp_path, seed):
    """Training and batch scoring read the same tables: they refuse them in a sentence, or read what the kernel reads."""
    rng, batches = np.random.default_rng(seed), 0
    folder = tmp_path / "competition"
    folder.mkdir()
    shutil.copy(mounted / "sample_submission.csv", folder)
    table = pd.read_csv(mounted / "test-metadata.csv", dtype="str", keep_default_na=False)
    assert list(table) == [name for name in TEST_COLUMNS if name in table]
    path = folder / "test-metadata.csv"
    for number in range(25):
        path.write_bytes(garbled(rng, table))
        assert scored(folder, tabular_only, tmp_path).between(0, 1).all()
        check_training(path, read_metadata_leniently(path)[0])
        if number % 3 == 0:
            kernel_scores = pd.read_csv(tmp_path / "scores.csv", dtype={ID: "str"}, keep_default_na=False).set_index(ID)
            batches += check_batch_scoring(path, tabular_only, tmp_path / f"batch{number}", kernel_scores)
    assert batches > 2
