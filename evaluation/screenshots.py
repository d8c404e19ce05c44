"""Pictures of the report and of a triage page for the docs, by a headless Chromium; of the synthetic dataset only.

python -m evaluation.screenshots --data demo/data --report demo/report --triage demo/triage --out docs
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from inference.files import replacing
from inference.options import Parser, existing_folder, output_folder
from terminal import run_command
from utils import InputError, log_summary, text_table

#: The names of its program in Debian, Google's packages and Ubuntu.
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
#: Pixels of a picture; what lies below is cut off.
WIDTH, HEIGHT = 1100, 1250
#: Bytes of a picture; its colours are reduced until it has so many.
MOST_BYTES = 200_000
PALETTES = (256, 128, 64, 32)


def main(arguments: list[str] | None = None) -> int:
    """Writes report.png and triage.png."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=existing_folder, required=True, metavar="DIR", help="what the pages show: synthetic")
    parser.add_argument("--report", type=existing_folder, required=True, metavar="DIR", help="folder of the dry run")
    parser.add_argument("--triage", type=existing_folder, required=True, metavar="DIR", help="folder of the triage")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="folder for the pictures")
    options = parser.parse_args(arguments)
    if not (options.data / "truth.csv").is_file():
        raise InputError(f"{options.data} has no truth.csv, so it is not synthetic; pictures of patients stay out of docs.")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise InputError("there is no Chromium; run: apt-get install chromium")
    pages = {"report.png": options.report / "index.html", "triage.png": patient_page(options.triage)}
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [["picture", "kB", "page"]]
    for name, page in pages.items():
        size = photograph(browser, page, options.out / name)
        rows.append([name, f"{size / 1000:.0f}", page.name])
    log_summary(f"{options.out}: {len(pages)} pictures of {WIDTH} x {HEIGHT} pixels", text_table(rows))
    return 0


def patient_page(folder: Path) -> Path:
    """The first page of a patient; raises InputError where there is none."""
    pages = sorted(path for path in folder.glob("*.html") if path.name != "index.html")
    if not pages:
        raise InputError(f"{folder} has no page of a patient; make it with evaluation.triage.")
    return pages[0]


def photograph(browser: str, page: Path, path: Path) -> int:
    """Writes the top of a page as a PNG of at most ``MOST_BYTES`` and returns its size.

    Raises:
        InputError: the page is missing, or the browser makes no picture.
    """
    if not page.is_file():
        raise InputError(f"{page} does not exist; make it with evaluation.dry_run.")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "page.png"
        what = [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={raw}"]
        run = subprocess.run(
            [browser, *OPTIONS, *what, page.resolve().as_uri()], capture_output=True, text=True, timeout=300, check=False
        )
        if not raw.is_file():
            raise InputError(f"{browser} made no picture of {page} ({run.stderr.strip()[-200:]}); try it by hand.")
        with Image.open(raw) as picture:
            whole = picture.convert("RGB").crop((0, 0, WIDTH, HEIGHT))
    with replacing(path) as temporary:
        for colours in PALETTES:
            whole.quantize(colours, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
            if temporary.stat().st_size <= MOST_BYTES:
                break
    return path.stat().st_size


if __name__ == "__main__":
    run_command(main)
