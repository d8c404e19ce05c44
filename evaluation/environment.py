"""Prints what a bug report needs: versions, hardware, the data found, the artifact manifest; about twenty lines.

    python -m evaluation.environment --data data/isic-2024-challenge --artifacts artifacts

The text is made to be pasted in public: folders by their last name only, no path of a home folder, no token, and of the
environment variables only those of ``VARIABLES``. What cannot be read becomes a line that says why.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata as installed
from pathlib import Path
from typing import Any

import pandas as pd
from packaging.requirements import Requirement

from inference.artifacts import MANIFEST, Manifest, artifact_path, checked_file, load_manifest
from inference.build_kernel import ROOT, build_kernel
from inference.files import sha256_of
from inference.images import ImageStore, cores, find_images
from inference.options import Parser, output_folder
from inference.run_log import versions
from inference.schema import ID, PATIENT, TARGET, TEXT_COLUMNS
from inference.tables import Reading, encoding_of, read_csv_file
from terminal import run_command
from utils import InputError, print_line

#: Environment variables that change how TensorFlow and NumPy compute.
VARIABLES = re.compile(
    r"CUDA_VISIBLE_DEVICES|KERAS_BACKEND|OMP_NUM_THREADS|PYTHONHASHSEED|XLA_FLAGS"
    r"|TF_(CPP|CUDNN|DETERMINISTIC|ENABLE|FORCE|GPU|NUM|USE|XLA)\w*"
)
#: Run in a process of its own: TensorFlow ends the process where the processor or a driver does not suit it.
PROBE = (
    "import tensorflow as tf; gpus = len(tf.config.list_physical_devices('GPU')); "
    "print(f\"imports, GPUs it sees: {gpus}, built for CUDA {tf.sysconfig.get_build_info().get('cuda_version', 'none')}\")"
)
PROBE_SECONDS = 180
OTHER_PACKAGES = ("scikit-learn", "scipy", "pillow", "matplotlib", "jinja2", "dask", "optuna", "kaggle", "selenium")
INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "amx_tile": "AMX"}
HASH_DIGITS = 12
#: A word that looks like a key: long, of letters and digits.
SECRET = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{20,}")
HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s'\"]+")
#: What reading a file, a process or a manifest of any content may raise.
READ_ERRORS = (
    *(InputError, OSError, LookupError, TypeError, ValueError, AttributeError),
    *(subprocess.SubprocessError, installed.PackageNotFoundError),
)


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines."""
    parser = Parser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("data", "data/isic-2024-challenge"), ("artifacts", "artifacts")):
        parser.add_argument(
            f"--{name}", type=output_folder, default=Path(default), metavar="DIR", help="looked for in %(default)s"
        )
    options = parser.parse_args(arguments)
    for line in environment_lines(options.data, options.artifacts):
        print_line(line)
    return 0


def environment_lines(data: Path, artifacts: Path) -> list[str]:
    """The lines, each "what: facts".

    Args:
        data: the competition folder, which need not be there.
        artifacts: the artifact folder, which need not be there.
    """
    facts: list[tuple[str, Callable[[], str]]] = [
        ("project", project),
        ("python", lambda: f"{platform.python_implementation()} {platform.python_version()}, {environment_kind()}"),
        ("packages", lambda: listed(versions() | package_versions(OTHER_PACKAGES), leave_out=("python",))),
        ("pins", pins),
        ("system", lambda: " ".join([platform.system(), platform.release(), platform.machine(), *platform.libc_ver()])),
        ("processor", processor),
        ("memory", memory),
        ("disk", lambda: "{2:.0f} GB free of {0:.0f} GB".format(*(size / 1e9 for size in shutil.disk_usage(ROOT)))),
        ("NVIDIA driver", nvidia),
        ("TensorFlow", lambda: probe(PROBE)),
        ("variables", variables),
        *((f"data, {split}", lambda split=split: table_facts(data, split)) for split in ("train", "test")),
        *((f"images, {split}", lambda split=split: image_facts(data, split)) for split in ("train", "test")),
        *artifact_lines(artifacts),
    ]
    return [public(f"{name}: {attempted(fact) or 'none'}") for name, fact in facts]


def attempted(fact: Callable[[], str]) -> str:
    """The fact, or why it is not known."""
    try:
        return fact()
    except READ_ERRORS as error:
        return f"not known ({type(error).__name__}: {error})"


def public(text: str) -> str:
    """The text in one line, home folders as "~" and words that look like keys as "***"."""
    own = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none
    for folder in sorted({own, os.path.realpath(own)} - {"/", "~"}, key=len, reverse=True):
        text = text.replace(folder, "~")
    return SECRET.sub("***", HOME.sub("~", " ".join(text.split())))


# Software and hardware


def project() -> str:
    """The commit, how many files differ from it, and whether kernel.py is up to date."""
    kernel = ROOT / "kernel.py"
    state = "as built" if kernel.read_text(encoding="utf-8") == build_kernel() else "differs from inference/"
    return f"{commit()}; kernel.py {sha256_of(kernel)[:HASH_DIGITS]}, {state}"


def commit() -> str:
    """The commit that is checked out and how many files differ from it; that there is none where git finds none."""
    if not shutil.which("git"):
        return "no git"
    command = ["git", "-C", str(ROOT)]
    asked = (["rev-parse", f"--short={HASH_DIGITS}", "HEAD"], ["status", "--porcelain"])
    answers = [subprocess.run([*command, *words], capture_output=True, text=True, check=False) for words in asked]
    if any(answer.returncode for answer in answers):
        return "no git repository"
    return f"commit {answers[0].stdout.strip()}, {len(answers[1].stdout.splitlines())} files changed"


def environment_kind() -> str:
    """Whether packages come from a virtual environment, and whether this is Kaggle's or Colab's machine."""
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    hosts = [
        name for name, mark in (("Kaggle", "KAGGLE_KERNEL_RUN_TYPE"), ("Colab", "COLAB_RELEASE_TAG")) if mark in os.environ
    ]
    return ", ".join([kind, *hosts])


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = installed.version(name)
        except installed.PackageNotFoundError:
            continue
    return found


def pins() -> str:
    """What differs from requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith(("#", "-"))]
    wanted = [each for each in wanted if each.marker is None or each.marker.evaluate()]
    found = package_versions(each.name for each in wanted)
    differ = [
        f"{each.name} {found.get(each.name, 'not installed')} ({each.specifier})"
        for each in wanted
        if each.name not in found or not each.specifier.contains(found[each.name], prereleases=True)
    ]
    return ", ".join(differ) or "all as in requirements.txt"


def processor() -> str:
    """The processor's name, the cores that may be used, and its vector instructions where Linux lists them."""
    name, flags = platform.processor() or platform.machine(), ""
    if (listing := Path("/proc/cpuinfo")).is_file():
        known = dict(re.findall(r"^(model name|flags)\s*: (.*)$", listing.read_text(encoding="utf-8"), re.M))
        name, flags = known.get("model name", name), known.get("flags", "")
    vectors = [title for flag, title in INSTRUCTIONS.items() if flag in flags.split()]
    return ", ".join([name, f"{cores()} of {os.cpu_count()} cores", *vectors])


def memory() -> str:
    """Memory of the machine and what is available, in GB of 10^9 bytes, where Linux reports it."""
    text = Path("/proc/meminfo").read_text(encoding="utf-8")
    sizes = {name: int(size) * 1024 / 1e9 for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    return f"{sizes['MemTotal']:.1f} GB, {sizes['MemAvailable']:.1f} GB available"


def nvidia() -> str:
    """The graphics cards that NVIDIA's driver lists."""
    if not shutil.which("nvidia-smi"):
        return "none"
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    cards = done.stdout.splitlines()
    return "; ".join(cards) if cards and not done.returncode else f"nvidia-smi ended with status {done.returncode}"


def probe(code: str) -> str:
    """What Python code prints last in a process of its own, or how that process ended."""
    command = [sys.executable, "-c", code]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=environment, check=False)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1:]
    if done.returncode < 0:
        return f"crashes ({signal.Signals(-done.returncode).name})"
    return "".join(said)[:300] or f"ended with status {done.returncode}"


def variables() -> str:
    """Environment variables that change the computation."""
    chosen = {name: os.environ[name] for name in sorted(os.environ) if VARIABLES.fullmatch(name)}
    return " ".join(f"{name}={value}" for name, value in chosen.items()) or "none"


# Data


def table_facts(data: Path, split: str) -> str:
    """Counts of a split's metadata."""
    path = data / f"{split}-metadata.csv"
    if not path.is_file():
        return f"{data.name} has no {path.name}" if data.is_dir() else f"there is no folder {data.name}"
    with path.open(encoding=encoding_of(path), newline="") as file:
        columns = len(next(csv.reader(file), []))
    rows = read_csv_file(path, Reading(TEXT_COLUMNS, columns=frozenset((ID, PATIENT, TARGET))))
    facts = [f"{len(rows):,} rows, {columns} columns"]
    if PATIENT in rows:
        facts.append(f"{rows[PATIENT].nunique():,} patients")
    if TARGET in rows:
        facts.append(f"{int(pd.to_numeric(rows[TARGET], errors='coerce').sum()):,} malignant")
    made = " (synthetic)" if split == "train" and (data / "truth.csv").is_file() else ""
    return f"{data.name}{made}: {', '.join(facts)}"


def image_facts(data: Path, split: str) -> str:
    """Where a split's images lie and how many there are."""
    path = find_images(data, split)
    if path is None:
        return "none"
    store = ImageStore(path)
    try:
        size = f", {path.stat().st_size / 1e6:,.1f} MB" if path.is_file() else ""
        return f"{sum(1 for _ in store.names()):,} in {path.relative_to(data)}{size}"
    finally:
        store.close()


# Artifacts


def artifact_lines(artifacts: Path) -> list[tuple[str, Callable[[], str]]]:
    """Lines on the manifest and each stage in it; one line where there is no manifest that can be read."""
    try:
        manifest = load_manifest(artifacts)
    except READ_ERRORS as error:
        reason = str(error).replace(str(artifacts), artifacts.name)
        return [("artifacts", lambda: reason)]
    stages = {"folds": fold_facts, "tabular": tabular_facts, "network": network_facts}
    there = [(name, about) for name, about in stages.items() if name in manifest]
    return [
        ("artifacts", lambda: artifact_facts(artifacts, manifest)),
        *((name, lambda name=name, about=about: about(manifest[name])) for name, about in there),
        ("files", lambda: file_facts(artifacts, manifest)),
    ]


def artifact_facts(artifacts: Path, manifest: Manifest) -> str:
    """Format, hash and stages of the manifest, and versions that differ from those here."""
    now = versions()
    differ = {name: version for name, version in manifest["versions"].items() if now.get(name) != version}
    made = f"made with {listed(differ)}" if differ else "made with these versions"
    short = sha256_of(artifact_path(artifacts, MANIFEST))[:HASH_DIGITS]
    stages = ", ".join(dict.fromkeys(manifest["owners"].values()))
    return f"{artifacts.name}: {manifest['format']}, {MANIFEST} {short}; stages {stages}; {made}"


def fold_facts(folds: dict[str, Any]) -> str:
    """How the rows were divided."""
    wanted = ("folds", "seed", "holdout_rows", "holdout_hospital", "features")
    return listed({name: folds[name] for name in wanted if name in folds})


def tabular_facts(tabular: dict[str, Any]) -> str:
    """Models, features and out-of-fold score of the tabular stage."""
    trained, scores = tabular["trained_on"], tabular["scores"]
    return (
        f"{len(tabular['models'])} models, {len(tabular['features'])} features, {trained['lesions']:,} lesions, "
        f"{trained['malignant']:,} malignant, out of fold pAUC {scores['pauc']:.4f}"
    )


def network_facts(network: dict[str, Any]) -> str:
    """Networks, the options that matter most, and out-of-fold score of the fusion."""
    parts = []
    for name, section in network["networks"].items():
        training = section["training"]
        weights = Path(training["weights"]).name
        parts.append(
            f"{name}: {len(section['weights'])} of {training['backbone']}, {weights} weights, {training['image_size']} "
            f"pixels, {training['epochs']} epochs"
        )
    return (
        f"{'; '.join(parts)}; {network['trained_on']['images']:,} images, "
        f"{network['combination']['kind']}, out of fold pAUC {network['scores']['final']['pauc']:.4f}"
    )


def file_facts(artifacts: Path, manifest: Manifest) -> str:
    """How many files the manifest names, and which of them are not as it says."""
    wrong = []
    for name in manifest["files"]:
        try:
            checked_file(artifacts, manifest, name)
        except InputError:
            wrong.append(name)
    count = f"{len(manifest['files'])} named, "
    return count + (f"missing or changed: {', '.join(wrong)}" if wrong else "all as in the manifest")


def listed(facts: Mapping[str, object], leave_out: Iterable[str] = ()) -> str:
    """Names and values, in words."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name not in leave_out)


if __name__ == "__main__":
    run_command(main)
