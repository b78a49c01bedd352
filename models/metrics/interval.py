"""An estimate with its uncertainty. Light: imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the limits of its confidence interval, which may be infinite."""

    value: float
    low: float
    high: float
