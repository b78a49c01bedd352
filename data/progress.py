"""How long work tells what it has done."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with units done, units in total, and what they are or how it stands."""


def silent(done: int, total: int, status: str) -> None:
    """Tell nobody."""
