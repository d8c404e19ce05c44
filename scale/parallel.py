"""Runs independent tasks, such as the training of each fold: in this process, in several processes, or on a Dask cluster.

joblib distributes them, on a cluster through Dask; a task and its result are the same wherever it runs. A task whose worker
dies on a cluster is given to another one. A task opens its files by path where the worker has this machine's file system;
where it has not, Dask copies the files there and the results back. This is the project's only process pool.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
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

from inference.files import replacing
from inference.options import Parser, address, processes
from scale.progress import Bar
from terminal import guard_process, refusal, set_verbosity
from utils import OUTPUT, InputError

if TYPE_CHECKING:
    import distributed

#: Seconds to wait for a cluster's scheduler, and for its first worker.
PATIENCE = 30


@dataclass(frozen=True)
class Files:
    """Files that a task reads, and the folder that it writes into, as paths where it runs.

    Args:
        places: path in the command that distributes the tasks -> path where the task runs.
        folder: the task writes into it, and below.
    """

    places: dict[Path, Path]
    folder: Path
    #: Whether they are copies on a machine without the originals.
    elsewhere: bool = False

    @classmethod
    def of(cls, reads: Iterable[Path], folder: Path) -> Files:
        """Files of this machine."""
        return cls({path: path.resolve() for path in reads}, folder.resolve())

    def __getitem__(self, path: Path) -> Path:
        """Where the task finds the file that the command calls ``path``."""
        return self.places[path]


@dataclass(frozen=True)
class Progress:
    """The progress bar of ``run_tasks``, in ``Bar``'s words."""

    desc: str = "tasks"
    unit: str = "task"
    show: bool = True


#: A task: its number, what is called with which arguments, and its files.
_Call = tuple[int, Callable[..., Any], tuple, Files | None]


@dataclass(frozen=True)
class _Pool:
    """Where tasks run: in this process, in ``jobs`` processes that draw numbers in a folder, or on a cluster."""

    jobs: int = 1
    numbers: Path = Path()
    client: distributed.Client | None = None

    @property
    def is_here(self) -> bool:
        """Whether tasks run one after another in this process."""
        return self.jobs == 1 and self.client is None

    def run(self, calls: Iterable[_Call], return_as: str) -> Iterator[tuple]:
        """Number, result and files to write back of each call, as they come.

        Raises:
            InputError: a process was killed; and whatever a task raises.
        """
        if self.is_here:
            yield from map(_run, calls)
            return
        try:
            with _without_ctrl_c():
                results = self._parallel(return_as)(joblib.delayed(_run_elsewhere)(call) for call in calls)
            yield from results
        except TerminatedWorkerError as error:
            raise InputError(
                f"a process of --jobs {self.jobs} was killed, perhaps for lack of memory; run the same command again, "
                "with fewer --jobs."
            ) from error

    def _parallel(self, return_as: str) -> joblib.Parallel:
        share = {"initializer": _take_share, "initargs": (self.numbers, self.jobs, gpus(), OUTPUT.verbosity)}
        backend, options = (_dask_backend(self.client), {}) if self.client else ("loky", share)
        with joblib.parallel_config(backend, n_jobs=-1 if self.client else self.jobs, **options):
            return joblib.Parallel(return_as=return_as, batch_size=1)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Inside, Ctrl-C is ignored, and by the processes that are started here as long as they live."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_current: ContextVar[_Pool] = ContextVar("pool", default=_Pool())  # noqa: B039 - frozen


def add_worker_options(parser: Parser) -> None:
    """Adds ``--jobs`` and ``--cluster``, which mean the same in every command."""
    group = parser.add_argument_group("where it runs")
    group.add_argument(
        "--jobs",
        type=processes,
        default=1,
        help="processes of this machine, a GPU or a share of the cores each (default: 1)",
    )
    group.add_argument(
        "--cluster", type=address, metavar="tcp://HOST:PORT", help="scheduler of a Dask cluster, in place of --jobs"
    )


@contextlib.contextmanager
def workers(jobs: int = 1, cluster: str | None = None) -> Iterator[None]:
    """Inside, tasks run in ``jobs`` processes of this machine, or on the cluster.

    Raises:
        InputError: both are given, or the cluster cannot be used.
    """
    if cluster and jobs > 1:
        raise InputError(f"--jobs {jobs} and --cluster {cluster} exclude each other; give one of them.")
    with contextlib.ExitStack() as stack:
        numbers = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = stack.enter_context(_connected(cluster)) if cluster else None
        before = _current.set(_Pool(jobs, numbers, client))
        try:
            yield
        finally:
            _current.reset(before)


def in_own_process() -> bool:
    """Whether tasks run in this process, one after another, and so can print and show bars."""
    return _current.get().is_here


def stream_tasks(function: Callable[..., Any], tasks: Iterable[tuple]) -> Iterator[Any]:
    """``function(*task)`` of every task, in their order, each as soon as it and those before it are done.

    Args:
        function: of a module, so that another process finds it; a task may run again, if its worker dies.
        tasks: arguments that can be pickled; taken as workers become free.

    Raises:
        InputError: a process was killed, or several workers over the same task; and whatever a task raises.
    """
    calls = ((number, function, task, None) for number, task in enumerate(tasks))
    return (result for _, result, _ in _current.get().run(calls, "generator"))


def run_tasks(
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    count: int,
    files: Files | None = None,
    progress: Progress = Progress(),
) -> list:
    """``function(*task)`` of every task, or ``function(files, *task)`` where files are given; results in their order.

    Args:
        function: of a module, so that another process finds it; a task may run again, if its worker dies.
        tasks: arguments that can be pickled; taken as workers become free.
        count: number of tasks.
        files: what the tasks read and where they write; what they write is in its folder afterwards.
        progress: the bar.

    Raises:
        InputError: a process was killed, or several workers over the same task; and whatever a task raises.
    """
    pool, results = _current.get(), [None] * count
    with _carried(pool.client, files) if pool.client and files else contextlib.nullcontext(files) as given:
        calls = ((number, function, task, given) for number, task in enumerate(tasks))
        done = pool.run(calls, "generator_unordered")
        for number, result, written in Bar(
            done, desc=progress.desc, unit=progress.unit, total=count, disable=not progress.show
        ):
            results[number] = result
            if files is None:
                continue
            for name, content in written.items():
                with replacing(files.folder / name) as temporary:
                    temporary.write_bytes(content)
    return results


def _run(call: _Call) -> tuple[int, Any, dict[str, bytes]]:
    """Runs a task where it is: its number, its result, and the files that have to be sent back.

    All in one argument: joblib would leave a big one with a worker of the cluster, to be lost with it.
    """
    number, function, arguments, files = call
    if files is None:
        return number, function(*arguments), {}
    if not isinstance(files, _Carried) or files.are_shared():
        return number, function(files, *arguments), {}
    with tempfile.TemporaryDirectory() as name:
        copies = files.copies(Path(name))
        result = function(copies, *arguments)
        written = [path for path in copies.folder.rglob("*") if path.is_file()]
        return number, result, {str(path.relative_to(copies.folder)): path.read_bytes() for path in written}


def _run_elsewhere(call: _Call) -> tuple[int, Any, dict[str, bytes]]:
    """``_run`` in another process: an exception comes back as text, because not every exception can be pickled."""
    try:
        with _own_random():
            return _run(call)
    except InputError:
        raise
    except Exception as error:
        sentence = refusal(error)
        if sentence:
            raise InputError(sentence) from None
        raise RuntimeError(f"a task failed in a worker:\n{traceback.format_exc()}") from None


@contextlib.contextmanager
def _own_random() -> Iterator[None]:
    """Inside, the state of Python's ``random`` belongs to this thread alone.

    Keras draws the seeds of its layers from it, and so do the communication threads of a Dask worker, for other purposes.
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


# Processes of this machine


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def _take_share(numbers: Path, processes: int, names: Sequence[str], verbosity: int) -> None:
    """Gives a process that has just started one GPU, where there are any, and its share of the cores."""
    guard_process()
    set_verbosity(verbosity)
    Bar.hidden = True
    for number in itertools.count():
        try:
            (numbers / str(number)).touch(exist_ok=False)
            break
        except FileExistsError:
            continue
        except FileNotFoundError:  # the others have done all tasks meanwhile
            return
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[number % len(names)]
    cores = max(1, joblib.cpu_count() // processes)
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(cores)


def share_of_cores() -> int:
    """How many threads a task may use; -1 for all."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # of nested levels, the outermost
    return int(given) if given.isdecimal() and int(given) else -1


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
            command = f"python -m dask worker {address} --nthreads 1"
            raise InputError(f"--cluster {address}: no worker in {PATIENCE} s; start some: {command}") from error
        for worker, threads in client.ncores().items():
            if threads != 1:
                raise InputError(
                    f"worker {worker} has {threads} threads, but a task takes a whole process; start it with --nthreads 1."
                )
        try:
            yield client
        except distributed.scheduler.KilledWorker as error:
            raise InputError(f"several workers died over one task ({error}); read the workers' logs.") from error


def _dask_backend(client: distributed.Client) -> joblib.parallel.ParallelBackendBase:
    """joblib's own backend; but a cluster of one worker counts as two: for one, joblib would run the tasks here."""
    from joblib._dask import DaskDistributedBackend

    class Cluster(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs: int) -> int:
            return max(2, super().effective_n_jobs(n_jobs))

    return Cluster(client=client, wait_for_workers_timeout=PATIENCE)


@dataclass(frozen=True)
class _Carried(Files):
    """Files as sent to the workers of a cluster; a worker without the originals has copies under these names."""

    names: dict[Path, str] = field(default_factory=dict)
    #: A file in ``folder`` that shows a worker that it shares the folder with the machine that distributes the tasks.
    mark: str = ""

    def are_shared(self) -> bool:
        """Whether this process can open the originals."""
        return (self.folder / self.mark).is_file() and all(path.exists() for path in self.places.values())

    def copies(self, folder: Path) -> Files:
        """The copies on this worker, and ``folder`` to write into."""
        import distributed

        place = Path(distributed.get_worker().local_directory)
        return Files({path: place / name for path, name in self.names.items()}, folder, elsewhere=True)


@contextlib.contextmanager
def _carried(client: distributed.Client, files: Files) -> Iterator[_Carried]:
    """Files for tasks on a cluster; sends them to all workers, if one of them cannot open the originals."""
    from distributed.diagnostics.plugin import UploadFile

    key = uuid.uuid4().hex
    carried, names = _Carried(files.places, files.folder, mark=f".{key}"), {}
    files.folder.mkdir(parents=True, exist_ok=True)
    (files.folder / carried.mark).touch()
    try:
        if not all(client.run(carried.are_shared).values()):
            # As plugins, which workers that come later are given, too.
            with tempfile.TemporaryDirectory() as links:
                for number, (path, place) in enumerate(files.places.items()):
                    if not place.is_file():
                        raise InputError(f"{place} is not a file, and a worker cannot open it; share the folder.")
                    link = Path(links) / f"{key}-{number}-{place.name}"
                    link.symlink_to(place)
                    client.register_plugin(UploadFile(str(link), load=False), name=link.name)
                    names[path] = link.name
        yield replace(carried, names=names)
    finally:
        for name in names.values():
            client.unregister_worker_plugin(name)
        (files.folder / carried.mark).unlink(missing_ok=True)
