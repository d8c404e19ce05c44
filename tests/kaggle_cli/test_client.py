"""The real CLI against the stand-in: each way to fail, and that nothing of the credentials gets out."""

import os
import shutil
import subprocess

import pytest
from kaggle_stand_in import USER, refuse

from inference.build_kernel import ROOT
from kaggle_cli import client
from kaggle_cli.client import KaggleError, Wait, call, failure_in, last_line, table, user_name, wait_for
from utils import InputError

LIST = ("competitions", "files", "isic-2024-challenge", "--csv")


@pytest.mark.parametrize(
    ("answer", "code", "sentence"),
    [
        (refuse(401, "Unauthenticated"), 401, "kaggle auth login"),
        (refuse(403), 403, "403 Client Error: Forbidden .* permissions of this account"),
        (refuse(403, "Permission 'competitions.get' was denied"), 403, "'competitions.get' was denied.* this account"),
        (refuse(404, "Not found"), 404, "Not found.*check the name"),
        (refuse(409, "Conflict"), 409, "choose another name"),
        (refuse(429, "Too many requests"), 429, "run the same command again in some minutes"),
        (refuse(500), 500, "500 Server Error.*run the same command again later"),
        (refuse(503, "Service unavailable"), 500, "Service unavailable.*run the same command again later"),
        (refuse(400, "Bad page size"), None, "'Bad page size' .status 1."),
    ],
    ids=["401", "403", "403 with words", "404", "409", "429", "500", "503 with words", "another"],
)
def test_every_refusal_is_a_sentence_with_a_remedy(kaggle, answer, code, sentence):
    kaggle.answers["ListDataFiles"] = answer
    with pytest.raises(KaggleError, match=sentence) as raised:
        call(*LIST, show=False)
    assert raised.value.code == code
    assert "\n" not in str(raised.value)
    assert raised.value.is_temporary == (code in (429, 500))


def test_a_missing_network_is_a_temporary_error(kaggle, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(KaggleError, match="cannot be reached") as raised:
        call(*LIST, show=False)
    assert raised.value.is_temporary


@pytest.mark.parametrize(
    ("printed", "sentence"),
    [
        ("The following are not valid dataset sources and could not be added to the kernel: ['a/b']\nKernel version 2 "
         "successfully pushed.  Please check progress at x", "not valid dataset sources .*'a/b'.*push again"),
        ("The following are not valid kernel sources and could not be added to the kernel: ['a/b']", "not valid kernel"),
        ("The following are not valid competition sources and could not be added to the kernel: ['x']", "not valid comp"),
        ("The following are not valid tags and could not be added to the kernel: ['x']", "remove the tag"),
        ("Your kernel title does not resolve to the specified id. This may result in surprising behavior.", "same words"),
        ("Kernel push error: Notebook not found", "Notebook not found.*push again"),
        ("Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.", "hours reached.*once a week"),
        ("Kernel push error: Maximum batch GPU session count of 2 reached.", "count of 2 reached.*run of yours has ended"),
        ("Dataset creation error: The requested title is already in use", "already in use.*publish again"),
        ("Dataset version creation error: Incompatible Dataset Type", "Incompatible.*publish again"),
        ("Starting upload for file a\nUpload unsuccessful: a\nDataset version is being created.", "unsuccessful: a'.*again"),
        ("Could not submit to competition", "still takes submissions"),
    ],
)  # fmt: skip
def test_an_error_that_the_cli_only_prints_is_a_failure(printed, sentence):
    failure = failure_in(printed, 0)
    assert failure is not None
    with pytest.raises(KaggleError, match=sentence):
        raise failure
    assert failure_in("Kernel version 2 successfully pushed.  Please check progress at x", 0) is None


def test_the_error_of_a_missing_cli_names_the_command_that_installs_it():
    failure = failure_in("/usr/bin/python: No module named kaggle\n", 1)
    assert "python -m pip install -r requirements-dev.txt" in str(failure)


def test_the_command_and_the_output_of_the_cli_are_printed(kaggle, capsys):
    kaggle.files = {"sample_submission.csv": b"isic_id,target\n"}
    output = call(*LIST)
    printed = capsys.readouterr().out
    assert printed.startswith("$ kaggle competitions files isic-2024-challenge --csv\n")
    assert output in printed
    assert table(output, "name")[0]["size"] == "15"


def test_last_line_is_neither_empty_nor_a_progress_bar():
    assert last_line("first\nsecond  \n 10%|█    | 1/10\r100%|█████| 10/10\n\n") == "second"
    assert last_line("") == "nothing"


# The user and the credentials


def test_the_users_name_comes_from_the_cli(kaggle, monkeypatch, tmp_path):
    assert user_name() == USER
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    with pytest.raises(KaggleError, match="kaggle auth login"):
        user_name()
    kaggle.answers["IntrospectToken"] = lambda body: {"active": True, "username": "by-token"}
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-token")
    assert user_name() == "by-token"
    assert user_name(dry_run=True) == "OWNER"


def test_the_key_is_never_printed_even_when_the_cli_is_verbose(kaggle, monkeypatch, capfd):
    monkeypatch.setenv("VERBOSE", "1")
    monkeypatch.setenv("VERBOSE_OUTPUT", "1")
    call(*LIST)
    printed = capfd.readouterr()
    assert os.environ["KAGGLE_KEY"] not in printed.out + printed.err
    assert "Authorization" not in printed.out + printed.err


def test_git_ignores_credentials_wherever_they_lie():
    names = ["kaggle.json", ".kaggle/kaggle.json", "access_token", "train/kaggle.json", ".kaggle/access_token"]
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("this copy is no git repository, so git cannot be asked what it ignores")
    done = subprocess.run(["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == names
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not [name for name in tracked if name.endswith(("kaggle.json", "access_token"))]


def test_no_module_reads_credentials():
    for path in (ROOT / "kaggle_cli").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "kaggle.json") if word in text]


# Waiting


NOW = Wait(poll=0, minutes=1)


def test_each_change_of_the_state_is_logged_once(capsys):
    states = iter(["queued", "running", "running", None])
    wait_for("run", lambda: next(states), NOW, "look again")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0].split(" after")[0] for line in lines] == ["run: queued", "run: running", "run: done"]


def test_a_wait_survives_temporary_errors_only():
    answers = iter([KaggleError("busy", 429), KaggleError("down", 503), KaggleError("no network", 0), None])

    def look():
        answer = next(answers)
        if answer:
            raise answer

    wait_for("run", look, NOW, "look again")
    answers = iter([KaggleError("busy", 429)] * (client.PATIENCE + 1))
    with pytest.raises(KaggleError, match="busy"):
        wait_for("run", look, NOW, "look again")
    answers = iter([KaggleError("no such kernel", 404)])
    with pytest.raises(KaggleError, match="no such kernel"):
        wait_for("run", look, NOW, "look again")


def test_a_wait_that_is_too_short_names_the_next_step():
    with pytest.raises(InputError, match="run is still queued after --wait 0 minutes; look again"):
        wait_for("run", lambda: "queued", Wait(poll=0, minutes=0), "look again")
