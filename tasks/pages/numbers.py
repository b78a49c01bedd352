"""How values are shown to people."""

import math
import re
from typing import Any

from models.metrics.interval import Interval


def format_value(value: Any) -> str:
    """Show a value to people: floats with four digits, nothing as a dash.

    >>> format_value(0.123456), format_value(None), format_value("text")
    ('0.1235', '—', 'text')
    """
    if isinstance(value, Interval):
        return format_interval(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_interval(interval: Interval, *, sign: bool = False) -> str:
    """Show a value with its interval, with no more digits than that allows: two of its half width.

    Args:
        sign: show a plus too.

    >>> format_interval(Interval(0.55521, 0.5431, 0.5672)), format_interval(Interval(1234.5, 900, 1500))
    ('0.555 (0.543 to 0.567)', '1230 (900 to 1500)')
    >>> format_interval(Interval(0.1, -math.inf, math.inf), sign=True)
    '+0.1'
    """
    shown = [interval.value, interval.low, interval.high]
    if not all(math.isfinite(value) for value in shown):
        return f"{interval.value:{'+' if sign else ''}.3g}"
    half = (interval.high - interval.low) / 2
    decimals = 1 - math.floor(math.log10(half)) if half > 0 else 4
    value, low, high = (
        f"{round(item, decimals):{'+' if sign else ''}.{max(decimals, 0)}f}" for item in shown
    )
    return f"{value} ({low} to {high})"


def number_name(text: str) -> str:
    """A name as JSON and SQL like it.

    >>> number_name("real+hard, equal exposure")
    'real_hard_equal_exposure'
    """
    return re.sub(r"[^0-9a-z]+", "_", text.lower()).strip("_")


def finite(value: float | None) -> float | str | None:
    """A number as JSON can have it: what is not finite becomes text that `float` reads.

    >>> finite(1.5), finite(-math.inf)
    (1.5, '-inf')
    """
    return value if value is None or math.isfinite(value) else str(value)
