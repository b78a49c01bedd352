"""Sizes and ages as people read them."""

import time

from pydantic import ByteSize

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def size(count: int) -> str:
    """So many bytes, in the largest unit of which there is one."""
    return ByteSize(count).human_readable(decimal=True)


def age(changed: float) -> str:
    """How long ago that was, in the largest unit of which there is one.

    Args:
        changed: seconds since the epoch.
    """
    passed = max(time.time() - changed, 0)
    unit = next((name for name in ("d", "h", "min") if passed >= SECONDS[name]), "s")
    return f"{passed / SECONDS[unit]:.0f} {unit}"
