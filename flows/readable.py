"""Sizes and ages as people read them."""

import time
from typing import Any

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


def told_apart(before: Any, after: Any) -> tuple[str, str]:
    """Two values that differ; their decimals with six digits, or with all where those are the same.

    >>> told_apart(0.1 + 0.2, None), told_apart(0.1 + 0.2, 0.3)
    (('0.3', 'None'), ('0.30000000000000004', '0.3'))
    """
    short, others = (
        f"{value:.6g}" if isinstance(value, float) else repr(value) for value in (before, after)
    )
    return (short, others) if short != others else (repr(before), repr(after))
