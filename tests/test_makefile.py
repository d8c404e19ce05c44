"""The recipes of the Makefile, as ``make -n`` shows them: each path is one word of the shell, whatever is in it."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make on this machine")
#: Values that a shell or make itself would take apart.
AWKWARD = [
    "my data",
    "it's",
    'the "data"',
    "a$b",
    "$HOME",
    "$(DATA)",
    "daten ä",
    "-x",
    "a,b(c)",
    "a#b",
    "a;b&c",
    "a\\b",
    "`a`",
    "*",
    "~/d",
    "a=b:c%d",
]


def recipe(*words, **environment):
    """The commands of a target, each as the words that the shell passes on; the virtual environment's are left out."""
    # With its defaults: these tests may have been started by make, with variables of its own.
    alone = {"cwd": ROOT, "env": {"PATH": os.environ["PATH"]} | environment, "capture_output": True, "text": True}
    shown = subprocess.run(["make", "-n", "--no-print-directory", *words], **alone, check=True).stdout
    after = shown.rpartition("/installed'\n")[2]
    return [shlex.split(line, comments=True) for line in after.replace("\\\n", " ").splitlines()]


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("data DATA=somewhere", "kaggle_cli.data --data=somewhere"),
        ("publish ARTIFACTS=trained", "kaggle_cli.publish --artifacts=trained"),
        ("push", "kaggle_cli.push --data=data/isic-2024-challenge --output=kaggle-output --source=dataset --part=1"),
        (
            "push SOURCE=training PART=2 OUTPUT=o",
            "kaggle_cli.push --data=data/isic-2024-challenge --output=o --source=training --part=2",
        ),
        ("submit MESSAGE=five", "kaggle_cli.submit --output=kaggle-output --message=five"),
        ("score", "kaggle_cli.submit --score"),
        ("train-on-kaggle PART=2 OPTIONS=--fetch", "kaggle_cli.train_remote --part=2 --fetch"),
    ],
)
def test_every_step_with_kaggle_is_one_target_with_a_dry_run(words, command):
    assert recipe(*words.split()) == [[".venv/bin/python", "-m", *command.split()]]
    assert recipe(*words.split(), "DRY=1") == [[".venv/bin/python", "-m", *command.split(), "--dry-run"]]


@pytest.mark.parametrize(
    ("target", "variable", "words"),
    [
        ("demo", "DEMO", {"--out={}/data", "--data={}/data", "--artifacts={}/artifacts", "--report={}/report"}),
        ("train", "DATA", {"--data={}"}),
        ("train", "ARTIFACTS", {"--artifacts={}"}),
        (
            "skew",
            "SKEW",
            {"{}/data", "{}/artifacts", "--data={}/data", "--out={}/data", "--artifacts={}/artifacts", "--out={}"},
        ),
        ("rehearsal", "REHEARSAL", {"--out={}"}),
        ("explore", "OUT", {"--out={}"}),
        ("explore", "DATA", {"--data={}"}),
        ("data", "DATA", {"--data={}"}),
        ("publish", "ARTIFACTS", {"--artifacts={}"}),
        ("push", "OUTPUT", {"--output={}"}),
        ("submit", "MESSAGE", {"--message={}"}),
        (
            "archives-study",
            "STUDY",
            {"--out={}/archives", "--archives={}/archives", "--artifacts={}/artifacts", "--out={}/trained"},
        ),
        ("archives-study", "ARCHIVES", {"--root={}"}),
        ("imbalance-study", "STUDY", {"--out={}"}),
        ("real-crops", "REAL_STUDY", {"--out={}"}),
        (
            "real-crops",
            "REAL",
            {"--root={}/isic-2024-permissive", "--competition={}/isic-2024-challenge", "--archives={}/isic-archives"},
        ),
        ("clean", "DEMO", {"{}"}),
        ("clean", "VENV", {"{}"}),
        ("explore", "VENV", {"{}/bin/python"}),
    ],
)
def test_a_path_is_one_word(target, variable, words):
    def others(value):
        return {word for line in recipe(target, f"{variable}={value}") for word in line}

    plain = others("PLAIN")
    for value in ["two words", "".join(AWKWARD)]:
        assert others(value) - plain == {word.format(value) for word in words}


@pytest.mark.parametrize("value", AWKWARD)
def test_every_value_passes_from_the_command_line_and_the_environment(value):
    assert recipe("clean", f"DEMO={value}") == recipe("clean", DEMO=value) == [["rm", "-rf", "--", value, ".venv"]]


@pytest.mark.parametrize("target", ["demo", "clean", "skew"])
def test_an_empty_value_is_refused(target):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        recipe(target, "DEMO=", "SKEW=")
    assert caught.value.returncode == 2
    assert "is empty" in caught.value.stderr


def test_options_are_words_of_the_shell():
    assert recipe("publish", "OPTIONS=--poll 3 --wait '5 5' '$x'")[0][-5:] == ["--poll", "3", "--wait", "5 5", "$x"]


def test_help_has_a_line_for_every_target_and_is_the_default():
    run = {"cwd": ROOT, "env": {"PATH": os.environ["PATH"]}, "capture_output": True, "text": True, "check": True}
    shown = subprocess.run(["make", "help"], **run).stdout
    assert subprocess.run(["make"], **run).stdout == shown
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    parts = {target for target in targets if target.startswith("lint-")}  # of lint
    assert sorted(line.split()[1] for line in shown.splitlines()) == sorted(targets - parts)
    assert all(len(line.split()) > 3 for line in shown.splitlines())


def test_the_demo_is_the_main_path_with_its_own_options():
    synthetic, path = recipe("demo")
    assert synthetic[:3] == [".venv/bin/python", "-m", "train.synthetic"]
    network = next(word for word in path if word.startswith("--fusion=")).removeprefix("--fusion=")
    assert path[1:] == [
        *("-m", "evaluation.main_path", "--data=demo/data", "--artifacts=demo/artifacts", "--report=demo/report"),
        *("--folds=--folds 2", "--tabular=--seeds 2", f"--fusion={network}"),
    ]
    assert network.split()[:2] == ["--backbone", "efficientnet-lite0"]  # the weights are in a package of the requirements


@pytest.fixture
def venv(tmp_path):
    """A virtual environment whose interpreter only writes down its arguments, in a folder with a space and a quote."""
    venv = tmp_path / "it's a venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {shlex.quote(str(tmp_path / "arguments"))}\n')
    (venv / "bin" / "python").chmod(0o755)
    (venv / "installed").touch()
    return venv


def given(venv, *words):
    """The arguments that the interpreter got last."""
    command = ["make", f"VENV={venv}", *words]
    subprocess.run(command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    return (venv.parent / "arguments").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("value", AWKWARD)
def test_commands_get_what_was_given(venv, value):
    found = given(venv, "submit", f"OUTPUT={value}", f"MESSAGE={value}")
    assert found == ["-m", "kaggle_cli.submit", f"--output={value}", f"--message={value}"]


def test_a_linked_virtual_environment_is_used(venv):
    link = venv.with_name("link")
    link.symlink_to(venv)
    (venv / "installed").unlink()
    assert given(link, ".installed")[:3] == ["-m", "pip", "install"]
    assert (venv / "installed").is_file()


def installed(folder, *words, **answers):
    """What a fresh install calls, and make's exit status; ``answers`` has the exit statuses of "uv" and "hashes" (pip)."""
    programs, calls = folder / "bin", folder / "calls"
    programs.mkdir(parents=True)
    for name in ("sh", "cp", "find", "mkdir", "touch"):
        (programs / name).symlink_to(shutil.which(name))
    for name in ("requirements.txt", "requirements-dev.txt", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    scripts = {
        "python3": 'case "$*" in\n'
        '  *venv*) mkdir -p new/bin; cp "$0" new/bin/python ;;\n'
        '  *%d.%d\\"*) echo 3.12 ;;\n'
        f'  *hashes*) echo "pip $*" >> {calls}; exit {answers["hashes"]} ;;\n'
        f'  *pip*) echo "pip $*" >> {calls} ;;\n'
        "esac",
        "uv": f'echo "uv $*" >> {calls}; exit {answers.get("uv")}',
    }
    for name, text in scripts.items():
        if name != "uv" or "uv" in answers:
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
    command = [shutil.which("make"), "-f", str(ROOT / "Makefile"), "VENV=new", ".installed", *words]
    done = subprocess.run(command, cwd=folder, env={"PATH": str(programs)}, capture_output=True, check=False)
    assert (done.returncode == 0) == (folder / "new" / "installed").is_file()
    lines = [line.split() for line in calls.read_text(encoding="utf-8").splitlines()]
    return done.returncode, [(line[0], line[-1]) for line in lines]


LOCK = "requirements/py3.12.txt"


def test_the_lock_of_this_python_is_installed_by_uv_or_pip(tmp_path):
    assert installed(tmp_path / "uv", uv=0, hashes=0) == (0, [("uv", LOCK)])
    assert installed(tmp_path / "pip", hashes=0) == (0, [("pip", LOCK)])
    assert installed(tmp_path / "both", uv=2, hashes=0) == (0, [("uv", LOCK), ("pip", LOCK)])


def test_an_index_without_the_locked_files_gives_the_pins_unless_only_the_lock_will_do(tmp_path):
    assert installed(tmp_path / "pins", hashes=1) == (0, [("pip", LOCK), ("pip", "requirements-dev.txt")])
    assert installed(tmp_path / "lock", "LOCKED=1", hashes=1) == (2, [("pip", LOCK)])
