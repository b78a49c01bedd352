"""An estimate with its uncertainty. Light: imports nothing."""

from dataclasses import dataclass

LEVEL = 0.95
"""Of confidence."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the limits of its confidence interval, which may be infinite."""

    value: float
    low: float
    high: float
