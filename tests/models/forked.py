"""Processes that torchrun forks: spawned, each would import PyTorch, as those of other tests do."""

import multiprocessing
import signal

from torch.distributed.launcher.api import LaunchConfig

from models import processes


def react_as_spawned() -> None:
    """Have a forked process react to signals as one that was spawned."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def launch_forked() -> None:
    """Have this process' trainings forked, and soon miss a host."""
    multiprocessing.set_start_method(None, force=True)  # a fork server's own would be inherited

    def config(*, rdzv_configs: dict, **options) -> LaunchConfig:
        soon = rdzv_configs | {"keep_alive_interval": 1}
        return LaunchConfig(**options | {"start_method": "fork", "rdzv_configs": soon})

    processes.LaunchConfig = config
