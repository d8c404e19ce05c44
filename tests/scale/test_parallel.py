import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from dask_cluster import cluster

from scale import parallel
from scale.parallel import Files, Progress, in_own_process, run_tasks, share_of_cores, stream_tasks, workers
from scale.progress import Bar
from utils import InputError

pytestmark = pytest.mark.integration
HIDDEN = Progress(show=False)


# What tasks do here


def square(number):
    return number * number


def refuse(number):
    raise InputError(f"{number} is refused.")


class Unsendable(Exception):
    """An exception that cannot be sent to another process."""

    def __reduce__(self):
        raise TypeError("cannot be pickled")


def break_down(number):
    raise Unsendable(f"broken at {number}")


def draw(seconds):
    """What ``random`` gives after it was seeded, while another thread draws from it, too."""
    stop = threading.Event()

    def others():
        while not stop.is_set():
            random.random()

    thread = threading.Thread(target=others)
    thread.start()
    random.seed(7)
    time.sleep(seconds)
    found = [random.randint(0, 10**9) for _ in range(5)]
    stop.set()
    thread.join()
    return found


def where(seconds):
    time.sleep(seconds)
    names = ("CUDA_VISIBLE_DEVICES", "TF_NUM_INTRAOP_THREADS")
    return os.getpid(), {name: os.environ.get(name) for name in names} | {"bars": not Bar.hidden}, share_of_cores()


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def copy_out(files, number, source):
    """Writes a copy of what it has read; returns where it ran."""
    (files.folder / "below").mkdir(exist_ok=True)
    (files.folder / "below" / f"copy{number}").write_bytes(files[source].read_bytes() * number)
    return Path.cwd(), files.elsewhere


def once(files, number):
    """Leaves a trace and waits, unless another one has been here before."""
    trace = files.folder / f"trace{number}"
    before = trace.is_file()
    trace.write_text(str(os.getpid()))
    if not before:
        time.sleep(3)
    return os.getpid(), before


# In this process, and in several of this machine


def test_results_come_in_the_order_of_the_tasks():
    assert in_own_process()
    assert list(stream_tasks(square, ((n,) for n in (3, 1, 2)))) == [9, 1, 4]
    assert run_tasks(square, ((n,) for n in (3, 1, 2)), 3, progress=HIDDEN) == [9, 1, 4]
    assert run_tasks(square, (), 0) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_input_error_of_a_task_is_raised(jobs):
    with workers(jobs), pytest.raises(InputError, match=r"7 is refused\."):
        run_tasks(refuse, [(7,)], 1, progress=HIDDEN)


def test_an_exception_in_a_worker_is_raised_even_if_it_cannot_be_sent():
    with workers(2), pytest.raises(RuntimeError, match=r"(?s)in a worker.*break_down.*broken at 7"):
        run_tasks(break_down, [(7,)], 1, progress=HIDDEN)


def test_a_seeded_task_draws_the_same_whatever_other_threads_draw():
    random.seed(7)
    expected = [random.randint(0, 10**9) for _ in range(5)]
    with workers(2):
        assert run_tasks(draw, [(0.1,)], 1, progress=HIDDEN) == [expected]


def test_each_process_has_a_gpu_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with workers(2):
        assert not in_own_process()
        assert list(stream_tasks(square, ((n,) for n in range(9)))) == [n * n for n in range(9)]
        found = run_tasks(where, [(0.5,)] * 4, 4, progress=HIDDEN)
    by_process = {pid: settings for pid, settings, _ in found}
    assert len(by_process) == 2
    assert os.getpid() not in by_process
    assert sorted(settings["CUDA_VISIBLE_DEVICES"] for settings in by_process.values()) == ["3", "5"]
    cores = max(1, parallel.joblib.cpu_count() // 2)
    assert {share for *_, share in found} == {cores}
    for settings in by_process.values():
        assert settings["TF_NUM_INTRAOP_THREADS"] == str(cores)
        assert not settings["bars"]
    assert in_own_process()  # and outside all is as it was
    assert run_tasks(where, [(0,)], 1, progress=HIDDEN)[0][0] == os.getpid()


@pytest.mark.parametrize(("given", "threads"), [("", -1), ("4", 4), ("2,1", 2), (" 3 ", 3), ("0", -1), ("many", -1)])
def test_the_share_of_the_cores_is_that_of_openmp(given, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert share_of_cores() == threads
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert share_of_cores() == -1


def test_a_killed_process_is_an_input_error():
    with workers(2), pytest.raises(InputError, match=r"a process of --jobs 2 was killed"):
        run_tasks(die, [(0,), (1,)], 2, progress=HIDDEN)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((2, "tcp://h:1"), "--jobs 2 and --cluster tcp://h:1"),
        ((1, "tcp://127.0.0.1:1"), "--cluster tcp://127.0.0.1:1: no scheduler"),
        ((1, "nonsense://x"), "--cluster nonsense://x: no scheduler"),
    ],
)
def test_unusable_workers_are_refused(arguments, sentence, monkeypatch):
    monkeypatch.setattr(parallel, "PATIENCE", 1)
    with pytest.raises(InputError, match=sentence), workers(*arguments):
        pytest.fail("went on")


def test_without_dask_the_error_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with (
        pytest.raises(InputError, match=r"needs dask\.distributed; run: pip install"),
        workers(cluster="tcp://x"),
    ):
        pytest.fail("went on")


# On a cluster


def test_a_cluster_gives_the_same_results_and_finds_the_files_from_another_directory(two_workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = Path("source")  # a relative path
    source.write_bytes(b"abc")
    with workers(cluster=two_workers):
        assert not in_own_process()
        assert run_tasks(square, [(n,) for n in range(5)], 5, progress=HIDDEN) == [0, 1, 4, 9, 16]
        assert list(stream_tasks(square, [(n,) for n in range(5)])) == [0, 1, 4, 9, 16]
        files = Files.of([source], Path("out"))
        found = run_tasks(copy_out, [(n, source) for n in (1, 2)], 2, files, progress=HIDDEN)
        with pytest.raises(InputError, match=r"7 is refused\."):
            run_tasks(refuse, [(7,)], 1, progress=HIDDEN)
    for place, elsewhere in found:
        assert place != Path.cwd()
        assert not elsewhere
    assert [Path(f"out/below/copy{n}").read_bytes() for n in (1, 2)] == [b"abc", b"abcabc"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["below"]


def test_a_worker_without_the_files_gets_copies_and_sends_back_what_it_writes(tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    alone = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs none {hidden} && exec "$@"',
        "sh",
    ]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here, by which the files could be hidden from a worker")
    (hidden / "source").write_bytes(b"abc" * 1000)
    files = Files.of([hidden / "source"], hidden / "out")
    with cluster(1, tmp_path, prefix=alone) as (address, _), workers(cluster=address):
        found = run_tasks(copy_out, [(n, hidden / "source") for n in (1, 2)], 2, files, progress=HIDDEN)
        with pytest.raises(InputError, match=r"hidden is not a file, and a worker cannot open it; share the folder"):
            run_tasks(copy_out, [(1, hidden)], 1, Files.of([hidden], hidden / "out"), progress=HIDDEN)
    assert [elsewhere for _, elsewhere in found] == [True, True]
    assert [(hidden / "out" / "below" / f"copy{n}").read_bytes() for n in (1, 2)] == [b"abc" * 1000, b"abc" * 2000]
    assert sorted(path.name for path in (hidden / "out").iterdir()) == ["below"]


def test_a_worker_with_several_threads_is_refused(tmp_path):
    refused = pytest.raises(InputError, match=r"has 2 threads, .* start it with --nthreads 1")
    with cluster(1, tmp_path, threads=2) as (address, _), refused, workers(cluster=address):
        pytest.fail("went on")


def test_the_task_of_a_killed_worker_runs_again_elsewhere(tmp_path):
    """Kills one of two workers in the middle of its task."""
    with cluster(2, tmp_path / "cluster") as (address, processes), workers(cluster=address):

        def tasks_and_a_kill():
            yield (0,)
            yield (1,)
            while not (tmp_path / "out" / "trace0").is_file() or not (tmp_path / "out" / "trace0").read_text():
                time.sleep(0.05)
            os.kill(int((tmp_path / "out" / "trace0").read_text()), signal.SIGKILL)

        files = Files.of([], tmp_path / "out")
        (first, again), (second, _) = run_tasks(once, tasks_and_a_kill(), 2, files, progress=HIDDEN)
        dead = [process.pid for process in processes if process.poll() is not None]
    assert again  # another worker had begun it
    assert len(dead) == 1
    assert first not in dead
    assert second not in dead
