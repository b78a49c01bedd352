"""How values are shown to people."""

import math
import re
from typing import Any

from models.metrics.interval import Interval, format_interval


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
