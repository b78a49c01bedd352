"""Workers on Ray: actors of a cluster that is there, or of one that lives as long as a step's work.

Ray's own retries are off: they would give a shard that kills its worker to others for ever.
"""

import logging
import os
import pickle
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from typing import Any

import ray
from ray import cloudpickle
from ray._private import ray_constants
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub lacks it
from ray.exceptions import RayError, RayTaskError

from data.artifacts.options import Execution
from data.errors import InvalidConfig, ServiceUnavailable
from models.precision import visible_gpus
from tasks.execution.child import gathered_warnings, log_plainly, use_threads
from tasks.execution.executors import THREADS, Job, Prepare, Warned, Worker, enough_gpus
from tasks.execution.versions import require_versions, versions

_OBJECT_STORE_BYTES = 100_000_000
"""Results go through files; Ray would take a third of the memory."""

_SECONDS_TO_ANSWER = 10


@contextmanager
def ray_executor(
    options: Execution, most: int, num_cores: int, *, on_gpu: bool
) -> Iterator["RayExecutor"]:
    """Connect to a cluster, or start one; at the end nothing of it is left.

    Args:
        most: workers that there is something to do for.
        num_cores: to use where there is no GPU, in a cluster of the step's own.
        on_gpu: whether workers use GPUs where there are some.

    Raises:
        InvalidConfig: more workers are asked for than the cluster has room for.
        ServiceUnavailable: no cluster answers at the address, or one of another version.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        try:
            if options.address:
                _connect(options.address)
            else:
                gpus = len(visible_gpus()) if on_gpu else 0
                asked = enough_gpus(options.num_workers, gpus, "here")
                _start(asked or num_cores, gpus, folder)
            room = ray.cluster_resources()
            gpus, cores = (int(room.get(name, 0)) for name in ("GPU", "CPU"))
            gpus = gpus if on_gpu else 0
            asked = enough_gpus(options.num_workers, gpus, "of the cluster") or cores
            if asked > cores:
                raise InvalidConfig(
                    f"execution.num_workers {asked} is more than the {cores} cores of the cluster"
                )
            yield RayExecutor(min(asked, most), num_gpus=1 if gpus else 0)
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        if port.isdecimal():  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
            GcsClient(address=address)  # 40 s, of which Ray itself would take twenty in a row
        ray.init(address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ServiceUnavailable(
            f"execution.address {address}: {error}; `ray start --head` starts a cluster, and without an "
            "address each step has one of its own"
        ) from error


def _start(num_cpus: int, num_gpus: int, folder: str) -> None:
    """Start a cluster that listens to this machine alone.

    Args:
        folder: for its files; Unix sockets among them bear no long path.
    """
    ray_constants.ENABLE_RAY_CLUSTER = False  # as on macOS: the loopback address
    ray.init(
        "local",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.WARNING,
        _temp_dir=folder,
    )


class RayExecutor:
    """Workers that are actors, each of a core and perhaps a GPU."""

    def __init__(self, num_workers: int, num_gpus: int):
        self.num_workers = num_workers
        self._new = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=num_gpus, max_restarts=0, max_task_retries=0
        )

    def new_worker(self, prepare: Prepare) -> Worker:
        """Ask for an actor; it begins when the cluster has room."""
        return _RayWorker(self._new.remote(), prepare)


class _RayWorker:
    def __init__(self, actor: Any, prepare: Prepare):
        self._actor = actor
        self._prepare = cloudpickle.dumps(
            prepare
        )  # of a notebook too; read when versions are known

    def begin(self) -> Warned:
        return _outcome(self._actor.begin.remote(versions(), self._prepare))

    def do(self, given: Any) -> Warned:
        return _outcome(self._actor.do.remote(given))

    def end(self) -> None:
        ray.kill(self._actor)


def _outcome(reference: Any) -> Warned:
    """What becomes of a call: errors as they were raised in the actor, `BrokenExecutor` where it died."""
    outcome: Warned = Future()

    def settle(done: Warned) -> None:
        error = done.exception()
        if isinstance(error, RayTaskError):
            error = error.cause
        elif isinstance(error, RayError):
            error = BrokenExecutor(str(error))
        if error:
            outcome.set_exception(error)
        else:
            outcome.set_result(done.result())

    reference.future().add_done_callback(settle)
    return outcome


class _Actor:
    """A worker's process."""

    _job: Job

    def begin(self, theirs: dict[str, str], prepare: bytes) -> list[str]:
        require_versions(theirs, f"a worker on {os.uname().nodename}")
        log_plainly()
        use_threads(THREADS)
        with gathered_warnings() as warned:
            self._job = pickle.loads(prepare)()  # noqa: S301  # of the run itself
        return warned

    def do(self, given: Any) -> list[str]:
        with gathered_warnings() as warned:
            self._job(given)
        return warned
