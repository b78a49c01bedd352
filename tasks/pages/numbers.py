"""How values are shown to people."""

from typing import Any


def format_value(value: Any) -> str:
    """Show a value to people: floats with four digits, nothing as a dash.

    >>> format_value(0.123456), format_value(None), format_value("text")
    ('0.1235', '—', 'text')
    """
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
