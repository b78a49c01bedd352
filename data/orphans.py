"""No process of ours outlives the one that started it."""

import os
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

    _end_after(wait)


def end_with_channel(channel: Connection) -> None:
    """End this process when the other end of a connection is closed, as by the end of its process.

    A forked process' parent is the fork server, which stays as long as one of its children does.
    """
    _end_after(lambda: channel.poll(None))


def _end_after(wait: Callable[[], object]) -> None:
    def watch() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
