"""No process of ours outlives the one that started it."""

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent() -> None:
    """End this process soon after its parent has ended, however that came about."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    _end_after(wait, lambda: os._exit(1))


def end_with_channel(channel: Connection) -> None:
    """End this process and its group when the other end of a connection is closed, as by its process' end.

    A forked process' parent is the fork server, which stays as long as one of its children does.
    """
    _end_after(lambda: channel.poll(None), lambda: os.killpg(0, signal.SIGKILL))


def _end_after(wait: Callable[[], object], end: Callable[[], object]) -> None:
    def watch() -> None:
        wait()
        end()

    threading.Thread(target=watch, daemon=True).start()
