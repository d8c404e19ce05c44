import io
import re
import sys

import pytest

import utils
from scale import progress
from scale.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves, for the lines that are due."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines_of(capsys, steps, clock, seconds):
    """What a bar of ``steps`` prints into a log file, each step taking ``seconds``."""
    with Bar(total=steps, desc="Fold 0", unit="step", mininterval=0) as bar:
        for _ in range(steps):
            clock[0] += seconds
            bar.update()
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("steps", "seconds", "count"),
    [
        (100, 0.2, 0),  # 20 s
        (100, 1, 4),  # a line within 30 s of the one before is left out
        (100, 30, 10),  # one at each tenth
        (100, 400, 50),  # a tenth takes more than 600 s
    ],
)
def test_a_log_file_gets_a_line_now_and_then(steps, seconds, count, capsys, clock):
    lines = lines_of(capsys, steps, clock, seconds)
    assert len(lines) == count
    assert all(re.match(r"Fold 0 +\d+ % \d+/100 steps, ", line) for line in lines)
    assert count == 0 or lines[-1].startswith("Fold 0 100 % 100/100")


def test_a_long_bar_that_ends_early_says_how_far_it_came(capsys, clock):
    with pytest.raises(KeyError), Bar(total=10, desc="images", unit="image", mininterval=0) as bar:
        for _ in range(5):
            clock[0] += 40
            bar.update()
        bar.n += 1
        raise KeyError
    assert re.match(r"images +60 % 6/10", capsys.readouterr().err.splitlines()[-1])


def test_a_bar_resumes_where_it_was(capsys, clock):
    with Bar(total=10, initial=8, desc="Fold 0", unit="step", mininterval=0) as bar:
        clock[0] += 40
        bar.update()
        assert bar.n == 9
    assert "90 % 9/10" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_that_lines_do_not_cut(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setattr(sys, "stdout", screen)
    with Bar(range(4), desc="images", unit="image") as bar:
        for _ in bar:
            utils.log("line")
    text = screen.getvalue()
    assert "images   0 %" in text
    assert text.count("line\n") == 4
    assert all(part.split("\r")[-1] == "line" for part in text.split("line\n")[:-1] for part in [part + "line"])


@pytest.mark.parametrize("how", ["quiet", "hidden"])
def test_no_bar_with_quiet_and_in_a_process_of_several(how, monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    monkeypatch.setattr(Bar, "hidden", how == "hidden")
    utils.OUTPUT.verbosity = -1 if how == "quiet" else 0
    assert list(Bar(range(3), desc="images", unit="image")) == [0, 1, 2]
    assert screen.getvalue() == ""
