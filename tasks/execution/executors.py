"""Processes that hold a model and do a step's jobs one by one; on this machine."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from data.artifacts.options import Execution
from data.errors import InvalidConfig
from data.orphans import end_with_parent
from models.precision import visible_gpus
from tasks.execution.child import gathered_warnings, log_plainly, use_threads

THREADS = 1
"""Of torch in a worker. It is part of a result: equal wherever, and by however many workers, it is made."""

Job = Callable[[Any], None]
Prepare = Callable[[], Job]
"""Loads, once in each worker, what its jobs need. Importable by name, as are its arguments' types."""

Warned = Future[list[str]]
"""Ends with what a worker's process has warned of, where that is not the step's own."""


class Worker(Protocol):
    """Does one job at a time; all that it is asked for ends in `BrokenExecutor` when it dies."""

    def begin(self) -> Warned:
        """Load what the jobs need."""

    def do(self, given: Any) -> Warned:
        """Do a job."""

    def end(self) -> None:
        """End at once, whatever it is doing."""


class Executor(Protocol):
    """Makes workers.

    Attributes:
        num_workers: that there may be at once.
    """

    num_workers: int

    def new_worker(self, prepare: Prepare) -> Worker:
        """Make a worker."""


class LocalExecutor:
    """Workers on this machine: spawned processes, or where there is to be one, this process itself.

    Args:
        most: workers that there is something to do for.
        num_cores: to use where there is no GPU.
        on_gpu: whether they use GPUs where there are some.

    Raises:
        InvalidConfig: more workers are asked for than there are GPUs.
    """

    def __init__(self, options: Execution, most: int, num_cores: int, *, on_gpu: bool):
        self._gpus = list(visible_gpus() if on_gpu else ())
        asked = enough_gpus(options.num_workers, len(self._gpus), "here")
        self.num_workers = min(asked or num_cores, most)

    def new_worker(self, prepare: Prepare) -> Worker:
        """Make a worker; with several and GPUs each has one."""
        if self.num_workers == 1:
            return _ThisProcess(prepare)
        return _Process(prepare, self._gpus)


def enough_gpus(num_workers: int | None, num_gpus: int, where: str) -> int | None:
    """How many workers there are to be; None where neither the options nor GPUs say so.

    Raises:
        InvalidConfig: more are asked for than there are GPUs.
    """
    if num_workers and num_gpus and num_workers > num_gpus:
        raise InvalidConfig(
            f"execution.num_workers {num_workers} is more than the {num_gpus} GPUs {where}"
        )
    return num_workers or num_gpus or None


class _ThisProcess:
    def __init__(self, prepare: Prepare):
        self._prepare = prepare

    def begin(self) -> Warned:
        return _called(self._load)

    def _load(self) -> None:
        use_threads(THREADS)
        self._job = self._prepare()

    def do(self, given: Any) -> Warned:
        return _called(partial(self._job, given))

    def end(self) -> None:
        pass


def _called(function: Callable[[], None]) -> Warned:
    future: Warned = Future()
    try:
        function()
    except Exception as error:  # noqa: BLE001  # whoever asks for the result gets it
        future.set_exception(error)
    else:
        future.set_result([])
    return future


class _Process:
    """A process of a pool of one: the death of another does not break it.

    Args:
        gpus: that are free, if there are some; it takes one, and gives it back at its end.
    """

    def __init__(self, prepare: Prepare, gpus: list[str]):
        os.environ["OMP_NUM_THREADS"] = str(THREADS)  # in time for what the process imports
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, spawn, end_with_parent)
        self._pid = self._pool.submit(os.getpid)
        self._prepare = prepare
        self._gpus = gpus
        self._own = gpus[:1]
        del gpus[:1]

    def begin(self) -> Warned:
        return self._pool.submit(_begin, self._prepare, self._own)

    def do(self, given: Any) -> Warned:
        return self._pool.submit(_do, given)

    def end(self) -> None:
        with suppress(BrokenExecutor, ProcessLookupError):
            self._pool.submit(int)  # refused after its death, when its number may be another's
            os.kill(self._pid.result(), signal.SIGKILL)
        self._pool.shutdown()
        self._gpus += self._own


_job: Job
"""What this worker process does."""


def _begin(prepare: Prepare, gpus: Sequence[str]) -> list[str]:
    global _job  # noqa: PLW0603  # the only place that outlives a call in a process of a pool
    log_plainly()
    use_threads(THREADS)
    if gpus:  # in time: CUDA reads it when it is first used
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    with gathered_warnings() as warned:
        _job = prepare()
    return warned


def _do(given: Any) -> list[str]:
    with gathered_warnings() as warned:
        _job(given)
    return warned
