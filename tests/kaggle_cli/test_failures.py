"""Logs in the shapes that Kaggle gives them, and the reasons that they point to. The lines are those of public logs."""

import json

import pytest

from kaggle_cli import failures
from kaggle_cli.client import KaggleError
from kaggle_cli.failures import REASONS, RunLog, explain, likely_reasons, read_log

MEMORY = "Your notebook tried to allocate more memory than is available."
TIME = "Your notebook was stopped because it exceeded the max allowed execution duration."
DNS = (
    "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='github.com', port=443): Max retries exceeded "
    'with url: /x (Caused by NameResolutionError("Failed to resolve: [Errno -3] Temporary failure in name resolution"))'
)
#: As `kaggle kernels logs` prints it: one list, a piece on each line, and after the error the lines of Kaggle's own tools.
PRINTED = r"""[{"stream_name":"stderr","time":6.409935486,"data":"0.00s - Debugger warning: It seems that frozen_modules\n"}
,{"stream_name":"stdout","time":10.494022797,"data":"[    0.1 s] 3 lesions\n"}
,{"stream_name":"stderr","time":13.434090583,"data":"Traceback (most recent call last):\n"}
,{"stream_name":"stderr","time":13.434120418,"data":"  File \"\u003cstring\u003e\", line 1, in \u003cmodule\u003e\n"}
,{"stream_name":"stderr","time":13.434604835,"data":"\u001b[0;31mModuleNotFoundError\u001b[0m: No module named 'timm'\n"}
,{"stream_name":"stderr","time":13.434607945,"data":"\n"}
,{"stream_name":"stderr","time":15.1,"data":" 50%|##### | 1/2 [00:01<00:01]\r100%|##########| 2/2 [00:02<00:00]\n"}
,{"stream_name":"stderr","time":15.504164564,"data":"/usr/lib/python3.12/dist-packages/mistune.py:435: SyntaxWarning\n"}
,{"stream_name":"stderr","time":18.806649392,"data":"[NbConvertApp] Converting notebook __notebook__.ipynb to html\n"}
,{"stream_name":"stderr","time":19.654624503,"data":"[NbConvertApp] Writing 349574 bytes to __results__.html\n"}
]"""
LINES = (
    "[    0.1 s] 3 lesions",
    "Traceback (most recent call last):",
    '  File "<string>", line 1, in <module>',
    "ModuleNotFoundError: No module named 'timm'",
)


@pytest.mark.parametrize(
    "output",
    [
        PRINTED,
        json.dumps(json.loads(PRINTED)),
        "\n".join(json.dumps(piece) for piece in json.loads(PRINTED)),
        PRINTED[: PRINTED.index("[NbConvertApp] Writing")],
        f"a warning of the CLI's Debugger warning\n{PRINTED}",
    ],
    ids=["as printed", "on one line", "no list", "cut off", "after another line"],
)
def test_logs_of_every_shape_have_the_same_lines(output):
    run = read_log(output)
    assert run.lines[: len(LINES)] == LINES
    assert run.seconds == pytest.approx(19.65, abs=1)


@pytest.mark.parametrize("output", ["plain text\nof two lines", '"a string"', "[1, 2]", "{}"])
def test_what_is_no_list_of_pieces_is_text(output):
    assert read_log(output) == RunLog(tuple(output.splitlines()), 0.0)


def test_an_empty_log_has_no_lines():
    assert read_log("\n") == read_log("[]\n") == RunLog((), 0.0)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Maximum weekly GPU quota of 30.00 hours reached.", "quota"),
        (DNS, "no_internet"),
        ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "no_internet"),
        ("Exception: URL fetch failure on https://x: None -- [Errno -2] Name or service not known", "no_internet"),
        ("ERROR: Could not find a version that satisfies the requirement timm (from versions: none)", None),
        ("test-metadata.csv is in 0 folders below /kaggle/input (nothing is); attach the competition once", "wrong_mount"),
        (
            "error: 0 folders below /kaggle/input hold a manifest.json of format 3 (a); attach the dataset once",
            "wrong_mount",
        ),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/kaggle/input/isic/test-image.hdf5'", "wrong_mount"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'weights.h5'", "error"),
        (MEMORY, "memory"),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 24.0 GiB for an array", "memory"),
        ("Killed", "memory"),
        ("nbclient.exceptions.DeadKernelError: Kernel died", "memory"),
        ("Notebook Exceeded Allowed Compute", "memory"),
        ("ResourceExhaustedError: OOM when allocating tensor with shape[256,112,112,64]", "gpu_memory"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "gpu_memory"),
        ("Your notebook tried to use more disk space than is available.", "disk"),
        (TIME, "time"),
        ("Evaluation Exception: Inference time cap exceeded.", "time"),
        ("Version 22 was canceled after 43200.2s (timeout exceeded)", "time"),
        ("Submission CSV Not Found", "file_name"),
        ("Evaluation Exception: Submission must have 418 rows", "row_count"),
        ("ERROR: Unexpected Column: 'NotAnId' (Line 1, Column 1)", "row_count"),
        ("Submission Scoring Error", "row_count"),
        ("ModuleNotFoundError: No module named 'timm'", "missing_package"),
        ("E0000 cuda_driver.cc:152] failed call to cuInit: CUDA_ERROR_NO_DEVICE", "gpu"),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "gpu"),
        ("ValueError: cannot reshape array", "error"),
        ("SystemExit: 2", "error"),
        ("Notebook Threw Exception", "error"),
        ("FutureWarning: this will be an Error: in the future", None),
        ("E0000 cuda_dnn.cc:8310] Unable to register cuDNN factory: one has already been registered", None),
    ],
)
def test_each_line_has_its_reason(line, name):
    assert [finding.reason.name for finding in likely_reasons(RunLog((line,), 60.0))] == ([name] if name else [])


def test_the_end_of_the_log_comes_before_its_start_and_what_kaggle_says_before_both():
    lines = ("Could not find cuda drivers", "No module named 'a'", DNS, "No module named 'b'", "ValueError: c")
    found = likely_reasons(RunLog(lines, 60.0), said=f"{TIME}\n")
    assert [(finding.reason.name, finding.line) for finding in found] == [
        ("time", TIME),
        ("error", "ValueError: c"),
        ("missing_package", "No module named 'b'"),
    ]


def test_a_log_of_twelve_hours_is_a_run_that_took_too_long():
    found = likely_reasons(RunLog(("epoch 9",), 43_200.0), hint="cancel_acknowledged")
    assert [finding.reason.name for finding in found] == ["time", "stopped"]


def test_names_of_reasons_are_unique():
    assert len({reason.name for reason in REASONS}) == len(REASONS)


@pytest.fixture
def shown(monkeypatch, capsys):
    """Explains a failure with a given log; returns the words for the sentence, and what was printed."""

    def show(output, *arguments, **options):
        monkeypatch.setattr(failures.cli, "call", lambda *words, show: output)
        return explain("a/b", *arguments, **options), capsys.readouterr().out

    return show


def test_a_blank_reason_is_replaced_by_that_of_the_log(shown):
    words, printed = shown(PRINTED)
    assert words == "Kaggle gives no reason, likely: missing package"
    assert "\n".join(LINES) in printed
    assert "1. missing package (\"ModuleNotFoundError: No module named 'timm'\"): " in printed
    assert "NbConvertApp" not in printed


def test_what_kaggle_says_stays_and_is_explained(shown):
    words, printed = shown(PRINTED, f"{MEMORY}\nIt has restarted.")
    assert words == f"{MEMORY}; It has restarted."
    assert printed.index("1. memory") < printed.index("2. missing package")


def test_a_log_that_ends_without_an_error_is_that_of_a_killed_process(shown):
    assert shown("epoch 1\nepoch 2\n")[0].endswith("likely: memory")
    assert shown("epoch 1\n", hint="the run left no run.json")[0].endswith("likely: not known")
    assert shown("\n")[0].endswith("likely: not known")


def test_a_failed_submission_has_the_reasons_of_the_hidden_test_too(shown):
    words, printed = shown("[  9.0 s] submission.csv: 3 rows\n", is_submission=True)
    assert words.endswith("likely: time, memory, row count")
    assert "hidden test" in printed
    assert shown("x\n", "Submission CSV Not Found", is_submission=True)[0] == "Submission CSV Not Found"


def test_only_the_end_of_a_long_log_is_printed(shown):
    _, printed = shown("".join(f"line {number}\n" for number in range(1, 101)))
    assert "last 25 of 100 lines" in printed
    assert "line 76\n" in printed
    assert "line 75\n" not in printed


def test_a_log_that_cannot_be_fetched_does_not_hide_the_failure(monkeypatch, capsys):
    def refuse(*words, show):
        raise KaggleError("no access", 403)

    monkeypatch.setattr(failures.cli, "call", refuse)
    assert explain("a/b", MEMORY) == MEMORY
    assert "(no log: no access)" in capsys.readouterr().out
