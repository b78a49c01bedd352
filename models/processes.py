"""Several processes that train together: `torchrun`, from Python."""

import os
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from data.errors import InvalidConfig, StepFailed

_MAX_RESTARTS = 3


def run_distributed(function: Callable[..., Any], *arguments: Any, num_processes: int) -> None:
    """Call a function in data-parallel processes of this machine, with torchrun's environment.

    They share this process' threads. When one of them dies all are started again, at most three
    times; the function must go on from its newest checkpoint.

    Args:
        function: importable by name, as are its arguments' types.

    Raises:
        InvalidConfig: there are fewer GPUs than processes.
        StepFailed: a process died once more.
    """
    if torch.cuda.is_available() and num_processes > torch.cuda.device_count():
        raise InvalidConfig(
            f"num_processes {num_processes} is more than the {torch.cuda.device_count()} GPUs here"
        )
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=uuid.uuid4().hex,
        max_restarts=_MAX_RESTARTS,
        monitor_interval=0.5,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
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
            f"process {rank} of {num_processes} ended {_MAX_RESTARTS + 1} times, with exit status "
            f"{failure.exitcode}: {failure.message}"
        ) from error


def is_main_process() -> bool:
    """Whether this is the only process, or the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"
