"""What a command costs, with its children."""

import os
import signal
import sys
import time

import pytest

from benchmarks.process_cost import Cost, measured

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


def run(code, tmp_path, watch=lambda _: None):
    return measured([sys.executable, "-c", code], tmp_path, os.environ, watch)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("benchmarks.process_cost.PERIOD", 0.05)
    monkeypatch.setattr("benchmarks.process_cost.WATCHING", 1.0)


def test_seconds_memory_bytes_and_status_are_found(tmp_path):
    code = "import os, time; block = b'x' * 200_000_000; open('file', 'wb').write(block[:5_000_000]); del block\n"
    code += "time.sleep(1); os._exit(3)"
    status, cost = run(code, tmp_path)
    assert status == 3
    assert 0.2 < cost.peak_gb < 0.3
    assert cost.written_gb == pytest.approx(0.005, abs=0.002)
    assert 0 < cost.cpu_seconds < cost.seconds + 0.1


def test_children_count(tmp_path):
    part = "import pathlib, time; block = bytearray(100_000_000); block[::4096] = b'x' * len(block[::4096])\n"
    part += "for _ in range(600): pathlib.Path('seen').exists() or time.sleep(0.1)"

    def watch(cost):
        if cost.peak_gb > 0.3:
            (tmp_path / "seen").touch()

    code = f"import subprocess, sys; all_ = [subprocess.Popen([sys.executable, '-c', {part!r}]) for _ in range(3)]"
    status, cost = run(f"{code}; [each.wait() for each in all_]", tmp_path, watch)
    assert status == 0
    assert 0.3 < cost.peak_gb < 0.5
    assert (tmp_path / "seen").exists()


def test_cpu_seconds_are_not_those_of_waiting(tmp_path):
    looks = []
    status, cost = run("import time; time.sleep(0.5)", tmp_path, looks.append)
    assert status == 0
    assert cost.cpu_seconds < 0.4 < cost.seconds
    assert [look.seconds for look in looks] == sorted(look.seconds for look in looks)
    assert len(looks) > 2


def test_a_command_ends_with_its_watcher(tmp_path):
    def interrupt(cost):
        if (tmp_path / "pid").exists():
            raise KeyboardInterrupt

    code = (
        "import os, pathlib, time; pathlib.Path('new').write_text(str(os.getpid())); os.rename('new', 'pid'); time.sleep(60)"
    )
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(code, tmp_path, interrupt)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


def test_costs_of_two_runs_are_added_but_for_the_peak():
    assert Cost(1, 2, 3, 4).and_then(Cost(10, 20, 2, 40)) == Cost(11, 22, 3, 44)
