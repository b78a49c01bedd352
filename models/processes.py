"""Several processes that train together: `torchrun`, from Python."""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from data.errors import InvalidConfig, ServiceUnavailable, StepFailed
from models.process_options import Backend

_MAX_RESTARTS = 3
_SECONDS_TO_CONNECT = 60
_SECONDS_TO_MEET = 600


@dataclass(frozen=True, slots=True)
class Hosts:
    """Machines whose processes work together.

    Attributes:
        count: of them.
        endpoint: HOST:PORT, where the first one listens.
        name: of their work, the same on all.
        is_first: whether this is the one that listens.
    """

    count: int
    endpoint: str
    name: str
    is_first: bool


def run_distributed(
    function: Callable[..., Any], *arguments: Any, num_processes: int, hosts: Hosts | None = None
) -> None:
    """Call a function in data-parallel processes of this machine, with torchrun's environment.

    They share this process' threads. When one of them dies all are started again, on every host, at
    most three times; the function must go on from its newest checkpoint. A host that is gone may come
    back within ten minutes, for which the others wait.

    Args:
        function: importable by name, as are its arguments' types.
        num_processes: of this machine.
        hosts: each of which calls this; None: this one alone.

    Raises:
        InvalidConfig: there are fewer GPUs than processes.
        ServiceUnavailable: the hosts do not find each other, or the endpoint's port is taken.
        StepFailed: a process died once more.
    """
    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise InvalidConfig(
            f"num_processes: {num_processes} of this host are more than its "
            f"{torch.cuda.device_count()} GPUs"
        )
    hosts = hosts or Hosts(1, "localhost:0", uuid.uuid4().hex, is_first=True)
    config = LaunchConfig(
        min_nodes=hosts.count,
        max_nodes=hosts.count,
        nproc_per_node=num_processes,
        run_id=hosts.name,
        max_restarts=_MAX_RESTARTS,
        monitor_interval=0.5,
        rdzv_backend="c10d",
        rdzv_endpoint=hosts.endpoint,
        rdzv_configs={
            "is_host": hosts.is_first,
            "read_timeout": _SECONDS_TO_CONNECT,
            "join_timeout": _SECONDS_TO_MEET,
        },
        start_method="spawn",
    )
    # With the launcher's own store, restarted processes would look for the dead ones' addresses.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # Processes that have more threads than cores together wait for each other in busy loops.
    os.environ["OMP_NUM_THREADS"] = str(max(torch.get_num_threads() // num_processes, 1))
    try:
        elastic_launch(config, function)(*arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise StepFailed(
            f"process {rank} of {hosts.count * num_processes} ended {_MAX_RESTARTS + 1} times, with exit "
            f"status {failure.exitcode}: {failure.message}"
        ) from error
    except RendezvousTimeoutError as error:
        raise ServiceUnavailable(
            f"num_nodes {hosts.count}: they were not all at {hosts.endpoint} within {_SECONDS_TO_MEET} s. "
            "Run again, and the command of its log on each other host"
        ) from error
    except RendezvousError as error:
        if "EADDRINUSE" in str(error.__cause__):
            raise ServiceUnavailable(
                f"rdzv_endpoint {hosts.endpoint}: something else has this port here; name one that is free"
            ) from error
        raise ServiceUnavailable(
            f"rdzv_endpoint {hosts.endpoint}: no connection within {_SECONDS_TO_CONNECT} s, or the host "
            "there has ended. It must be the name and a free port of the host that runs the training"
        ) from error


@contextmanager
def process_group(backend: Backend) -> Iterator[None]:
    """Let this process of `run_distributed` exchange tensors with the others, on a GPU of its own.

    After an error it must end: leaving the others might wait for them.
    """
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if backend == "auto":
        backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend)
    yield
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"
