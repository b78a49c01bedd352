"""No process of ours outlives the one that started it."""

import os
import threading
import time

_SECONDS_BETWEEN_LOOKS = 0.5


def end_with_parent() -> None:
    """End this process soon after its parent has ended, however that came about."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
