"""A real Dask cluster for tests: a scheduler in this process, and worker processes as a user starts them."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]


@contextmanager
def cluster(workers, folder, preload=None, prefix=(), threads=1):
    """Yields the scheduler's address and the workers' processes, each in a working directory of its own below ``folder``.

    Args:
        workers: how many.
        folder: for them.
        preload: a script of ``dask worker --preload``.
        prefix: words before the command of a worker.
        threads: of each worker.
    """
    from distributed import LocalCluster

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, HELPERS)))}
    with LocalCluster(n_workers=0, processes=True, dashboard_address=":0") as scheduler:
        command = [*prefix, sys.executable, "-m", "dask", "worker", scheduler.scheduler_address, "--nthreads", str(threads)]
        command += ["--no-nanny", "--no-dashboard"] + (["--preload", str(preload)] if preload else [])
        processes = []
        try:
            for number in range(workers):
                place = Path(folder) / f"worker{number}"
                place.mkdir(parents=True)
                with (place / "log").open("w", encoding="utf-8") as log:
                    processes.append(subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=log))
            end = time.monotonic() + 60
            while len(scheduler.scheduler.workers) < workers:
                assert time.monotonic() < end, "workers did not come: " + (Path(folder) / "worker0" / "log").read_text()
                time.sleep(0.05)
            yield scheduler.scheduler_address, processes
        finally:
            for process in processes:
                process.kill()
                process.wait()
