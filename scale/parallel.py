"""Independent tasks, such as the training of each fold: one after another, in processes of this machine, or on a cluster.

joblib hands them out, on a cluster through Dask; a task and its result are the same wherever it runs. A task whose worker
dies on a cluster is given to another one. What a task reads and writes it knows by path where the worker sees this machine's
files; where it does not, Dask carries the files there and back.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import subprocess
import tempfile
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError
from tqdm import tqdm

from inference.files import replacing
from utils import InputError

if TYPE_CHECKING:
    import distributed

#: How long a cluster is waited for, seconds: its scheduler, and its first worker.
PATIENCE = 30


@dataclass(frozen=True)
class Files:
    """Files that a task reads, and the folder that it writes into, as they lie where it runs.

    Args:
        places: file, as the command that hands out the tasks calls it -> where the task finds it.
        folder: the task writes into it, and below.
    """

    places: dict[Path, Path]
    folder: Path
    #: Whether they are copies on a machine that does not see the originals.
    elsewhere: bool = False

    @classmethod
    def of(cls, reads: Iterable[Path], folder: Path) -> Files:
        """Files of this machine."""
        return cls({path: path.resolve() for path in reads}, folder.resolve())

    def __getitem__(self, path: Path) -> Path:
        """Where the task finds the file that is called ``path`` where it was handed out."""
        return self.places[path]


@dataclass(frozen=True)
class _Workers:
    """So many processes of this machine, which take numbers in a folder; or a cluster."""

    jobs: int = 1
    numbers: Path = Path()
    client: distributed.Client | None = None

    @property
    def here(self) -> bool:
        """Whether tasks run one after another in this process."""
        return self.jobs == 1 and self.client is None

    @contextlib.contextmanager
    def parallel(self) -> Iterator[joblib.Parallel]:
        """joblib, set up for them."""
        how: dict[str, Any] = {"return_as": "generator_unordered", "batch_size": 1}
        if self.client:
            with joblib.parallel_config(_dask_backend(self.client)):
                yield joblib.Parallel(**how)
        elif self.jobs > 1:
            share = (self.numbers, self.jobs, gpus())
            with joblib.parallel_config("loky", initializer=_take_share, initargs=share):
                yield joblib.Parallel(self.jobs, **how)
        else:
            yield joblib.Parallel(1, **how)


_in_force: ContextVar[_Workers | None] = ContextVar("workers", default=None)


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--jobs`` and ``--cluster``, which mean the same in every command."""
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--jobs", type=int, default=1, help="processes of this machine, a GPU or a share of the cores each (default: 1)"
    )
    group.add_argument("--cluster", metavar="tcp://HOST:PORT", help="scheduler of a Dask cluster, in place of --jobs")


@contextlib.contextmanager
def workers(jobs: int = 1, cluster: str | None = None) -> Iterator[None]:
    """Inside, ``run_tasks`` runs where the options of ``add_worker_options`` say.

    Raises:
        InputError: both are given, --jobs is below 1, or the cluster cannot be used.
    """
    if jobs < 1:
        raise InputError(f"--jobs {jobs} is no number of processes; give 1 or more.")
    if cluster and jobs > 1:
        raise InputError(f"--jobs {jobs} and --cluster {cluster} exclude each other; give one.")
    with contextlib.ExitStack() as stack:
        numbers = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(_connected(cluster)) if cluster else None
        before = _in_force.set(_Workers(jobs, numbers, client))
        try:
            yield
        finally:
            _in_force.reset(before)


def run_tasks(
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    count: int,
    files: Files | None = None,
    *,
    desc: str = "tasks",
    unit: str = "task",
    progress: bool = True,
) -> list:
    """``function(*task)`` of every task, or ``function(files, *task)`` where files are given; results in their order.

    Args:
        function: of a module, so that another process finds it; a task may run again, if its worker dies.
        tasks: arguments that can be pickled; taken as workers become free.
        count: how many there are.
        files: what the tasks read and where they write; what they write lies in its folder afterwards.
        desc: heads the progress bar.
        unit: of the progress bar.
        progress: whether to show one.

    Raises:
        InputError: a process was killed, or several workers over the same task; whatever a task raises.
    """
    at_work, results = _in_force.get() or _Workers(), [None] * count
    with contextlib.ExitStack() as stack:
        if at_work.client and files:
            files = stack.enter_context(_carrying(at_work.client, files))
        parallel = stack.enter_context(at_work.parallel())
        try:
            run = _run if at_work.here else _run_away
            done = parallel(joblib.delayed(run)((number, function, task, files)) for number, task in enumerate(tasks))
            for number, result, written in tqdm(done, desc=desc, unit=unit, total=count, disable=not progress):
                results[number] = result
                for name, content in written.items():
                    with replacing(files.folder / name) as temporary:
                        temporary.write_bytes(content)
        except TerminatedWorkerError as error:
            raise InputError(
                f"a process of --jobs {at_work.jobs} was killed, perhaps for want of memory; run the same command again, "
                "with fewer --jobs."
            ) from error
    return results


def _run(call: tuple[int, Callable, tuple, Files | None]) -> tuple[int, Any, dict[str, bytes]]:
    """A task, where it runs: its number, its result, and the files that have to be carried back.

    All in one argument: joblib would leave a big one with a worker of the cluster, to be lost with it.
    """
    number, function, task, files = call
    if files is None:
        return number, function(*task), {}
    if not isinstance(files, _Carried) or files.in_sight():
        return number, function(files, *task), {}
    with tempfile.TemporaryDirectory() as name:
        here = files.arrived(Path(name))
        result = function(here, *task)
        written = [path for path in here.folder.rglob("*") if path.is_file()]
        return number, result, {str(path.relative_to(here.folder)): path.read_bytes() for path in written}


def _run_away(call: tuple[int, Callable, tuple, Files | None]) -> tuple[int, Any, dict[str, bytes]]:
    """``_run`` in another process: what breaks there comes back as text, which always can be sent."""
    try:
        with _own_random():
            return _run(call)
    except InputError:
        raise
    except Exception:
        raise RuntimeError(f"a task failed where it ran:\n{traceback.format_exc()}") from None


@contextlib.contextmanager
def _own_random() -> Iterator[None]:
    """Inside, Python's ``random`` is this thread's alone.

    Keras takes the seeds of its layers from it; so do, for their own ends, the threads by which a Dask worker talks.
    """
    own, thread = random.Random(), threading.get_ident()
    shared = {name: getattr(random, name) for name in ("seed", "random", "randint", "randrange", "uniform", "getrandbits")}

    def divided(name: str) -> Callable:
        def call(*arguments: Any, **named: Any) -> Any:
            function = getattr(own, name) if threading.get_ident() == thread else shared[name]
            return function(*arguments, **named)

        return call

    try:
        for name in shared:
            setattr(random, name, divided(name))
        yield
    finally:
        for name, function in shared.items():
            setattr(random, name, function)


def in_own_process() -> bool:
    """Whether tasks run in this process, one after another, and so can show what they do."""
    return (_in_force.get() or _Workers()).here


# Processes of this machine


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    try:
        asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def _take_share(numbers: Path, processes: int, names: Sequence[str]) -> None:
    """In a process that has just started: one GPU where there are any, and its share of the cores."""
    for number in itertools.count():
        with contextlib.suppress(FileExistsError):
            (numbers / str(number)).touch(exist_ok=False)
            break
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    cores = max(1, joblib.cpu_count() // processes)
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(cores)
    os.environ["TQDM_DISABLE"] = "1"  # of several bars at once one sees none


def share_of_cores() -> int:
    """How many threads a task may use; -1 for all."""
    return int(os.environ.get("OMP_NUM_THREADS", -1))


# A cluster


@contextlib.contextmanager
def _connected(address: str) -> Iterator[distributed.Client]:
    """A connection to the cluster.

    Raises:
        InputError: Dask is not installed; nothing answers; a worker would run several tasks in one process.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError("--cluster needs dask.distributed; run: pip install -r requirements-dev.txt") from error
    try:
        client = distributed.Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--cluster {address}: no scheduler answers ({error}); start one: python -m dask scheduler"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            told = f"python -m dask worker {address} --nthreads 1"
            raise InputError(f"--cluster {address}: no worker came in {PATIENCE} s; start some: {told}") from error
        for worker, threads in client.ncores().items():
            if threads != 1:
                raise InputError(
                    f"worker {worker} has {threads} threads, and a task takes a whole process; start it with --nthreads 1."
                )
        try:
            yield client
        except distributed.scheduler.KilledWorker as error:
            raise InputError(
                f"a task has lost its worker again and again ({error}); look into the workers' logs."
            ) from error


def _dask_backend(client: distributed.Client) -> joblib.parallel.ParallelBackendBase:
    """joblib's own backend; but a cluster of one worker counts as two: for one, joblib would run the tasks here."""
    from joblib._dask import DaskDistributedBackend

    class Cluster(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

    return Cluster(client=client, wait_for_workers_timeout=PATIENCE)


@dataclass(frozen=True)
class _Carried(Files):
    """Files as the workers of a cluster are told of them; those that do not see them find copies by these names."""

    names: dict[Path, str] = field(default_factory=dict)
    #: A file in ``folder`` by which a worker knows that it sees the folder of the machine that hands out the tasks.
    mark: str = ""

    def in_sight(self) -> bool:
        """Whether this process sees the very files."""
        return (self.folder / self.mark).is_file() and all(path.exists() for path in self.places.values())

    def arrived(self, folder: Path) -> Files:
        """The copies, and ``folder`` to write into."""
        import distributed

        place = Path(distributed.get_worker().local_directory)
        return Files({path: place / name for path, name in self.names.items()}, folder, elsewhere=True)


@contextlib.contextmanager
def _carrying(client: distributed.Client, files: Files) -> Iterator[_Carried]:
    """Files as the tasks on a cluster are told of them; sends them to all workers, if one does not see them."""
    from distributed.diagnostics.plugin import UploadFile

    key = uuid.uuid4().hex
    carried, names = _Carried(files.places, files.folder, mark=f".{key}"), {}
    files.folder.mkdir(parents=True, exist_ok=True)
    (files.folder / carried.mark).touch()
    try:
        if not all(client.run(carried.in_sight).values()):
            # As plugins, which workers that come later are given, too.
            with tempfile.TemporaryDirectory() as links:
                for number, (path, place) in enumerate(files.places.items()):
                    if not place.is_file():
                        raise InputError(f"{place} is no single file, and a worker does not see it; share the folder.")
                    link = Path(links) / f"{key}-{number}-{place.name}"
                    link.symlink_to(place)
                    client.register_plugin(UploadFile(str(link), load=False), name=link.name)
                    names[path] = link.name
        yield replace(carried, names=names)
    finally:
        for name in names.values():
            client.unregister_worker_plugin(name)
        (files.folder / carried.mark).unlink(missing_ok=True)
