"""An estimate with its uncertainty, and how people are shown it. Light: imports nothing of others."""

import math
from dataclasses import dataclass

LEVEL = 0.95
"""Of confidence."""

_ROUNDING = 1e-9
"""What is less than this, or than this share of the numbers beside it, is rounding."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the limits of its confidence interval, which may be infinite."""

    value: float
    low: float
    high: float


def format_interval(interval: Interval, *, sign: bool = False) -> str:
    """Show a value with its limits as `format_limits` does; alone where it has none.

    >>> format_interval(Interval(0.1, -math.inf, math.inf), sign=True)
    '+0.1'
    """
    if math.isfinite(interval.low) or math.isfinite(interval.high):
        return format_limits(interval, sign=sign)
    return f"{interval.value:{'+' if sign else ''}.3g}"


def format_limits(
    interval: Interval, *, sign: bool = False, most_decimals: int | None = None
) -> str:
    """Show a value with its limits, with no more digits than they allow.

    These are two of the half width, or of the distance to the only limit; three where that says nothing.

    Args:
        sign: show a plus too.
        most_decimals: of a value that has no more, such as a count.

    >>> format_limits(Interval(0.55521, 0.5431, 0.5672)), format_limits(Interval(1234.5, 900, math.inf))
    ('0.555 (0.543 to 0.567)', '1,230 (900 to ∞)')
    >>> format_limits(Interval(-0.0001, -0.0123, 0.0114), sign=True)
    '0.000 (-0.012 to +0.011)'
    """
    decimals = _decimals(interval)
    if most_decimals is not None:
        decimals = min(decimals, most_decimals)
    value, low, high = (
        _shown(number, decimals, sign=sign)
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} ({low} to {high})"


def _decimals(interval: Interval) -> int:
    """Digits after the point; before it where there are less than none."""
    value, low, high = interval.value, interval.low, interval.high
    reach = (high - low) / 2
    if math.isinf(reach):
        reach = min(value - low, high - value)
    size = max((abs(x) for x in (value, low, high) if math.isfinite(x)), default=0.0)
    if math.isfinite(reach) and reach > _ROUNDING * max(size, 1):
        return 1 - math.floor(math.log10(reach))
    return 2 - math.floor(math.log10(size)) if size > _ROUNDING else 0


def _shown(number: float, decimals: int, *, sign: bool) -> str:
    rounded = round(number, decimals)
    plus = "+" if sign and rounded > 0 else ""
    return f"{plus}{rounded:z,.{max(decimals, 0)}f}".replace("inf", "∞")
