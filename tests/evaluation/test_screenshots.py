import shutil
import stat

import numpy as np
import pytest
from PIL import Image

from evaluation import screenshots
from evaluation.screenshots import HEIGHT, MOST_BYTES, WIDTH, main, patient_page
from utils import InputError


@pytest.fixture
def folders(tmp_path):
    """The folders of a synthetic demo, and the arguments that name them."""
    for name in ("data", "report", "triage"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "truth.csv").touch()
    (tmp_path / "report" / "index.html").touch()
    for name in ("index", "IP_2", "IP_1"):
        (tmp_path / "triage" / f"{name}.html").touch()
    return tmp_path, [f"--{name}={tmp_path / name}" for name in ("data", "report", "triage")] + [f"--out={tmp_path / 'out'}"]


@pytest.fixture
def browser(tmp_path, monkeypatch):
    """A program that takes the options of Chromium and copies a picture of noise, hard to compress."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST).save(tmp_path / "noise.png")
    program = tmp_path / "chromium"
    copy = f'cp "{tmp_path}/noise.png" "${{each#--screenshot=}}"'
    program.write_text(f'#!/bin/sh\nfor each in "$@"; do case $each in --screenshot=*) {copy};; esac; done\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda name: str(program) if name == "chromium" else None)
    return program


def test_pictures_are_small_and_of_one_size(folders, browser):
    folder, arguments = folders
    assert main(arguments) == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["report.png", "triage.png"]
    for path in (folder / "out").iterdir():
        assert path.stat().st_size <= MOST_BYTES
        with Image.open(path) as picture:
            assert picture.size == (WIDTH, HEIGHT)


def test_data_of_patients_are_refused(folders, browser):
    folder, arguments = folders
    (folder / "data" / "truth.csv").unlink()
    with pytest.raises(InputError, match=r"truth\.csv"):
        main(arguments)
    assert not (folder / "out").exists()


def test_a_machine_without_a_browser_is_an_input_error(folders, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="apt-get install chromium"):
        main(folders[1])


def test_a_browser_that_makes_no_picture_is_an_input_error(folders, browser):
    browser.write_text("#!/bin/sh\necho broken >&2\n")
    with pytest.raises(InputError, match="broken"):
        main(folders[1])


def test_the_first_patient_is_shown(folders):
    folder, _ = folders
    assert patient_page(folder / "triage").name == "IP_1.html"
    with pytest.raises(InputError, match=r"evaluation\.triage"):
        patient_page(folder / "report")


def test_the_pages_of_the_docs_fit(folders):
    for name in ("report", "triage"):
        path = screenshots.Path(__file__).parents[2] / "docs" / f"{name}.png"
        assert path.stat().st_size <= MOST_BYTES
