"""Cards: the Markdown page and pictures by which a stage shows its artifact in the UI and report."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.gallery import contact_sheet, data_uri, draw_layout, in_rows, png_bytes
from data.images import read_square
from data.layouts import Layout

CARD_NAME = "card.md"

_THUMBNAIL = 96
"""Side in pixels."""

_MAX_PICTURE_BYTES = 200_000
"""As PNG; the UI wants a card of at most 300 kB, and base64 adds a third."""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render rows with the same keys as a Markdown table; floats with four digits.

    >>> print(markdown_table([{"a": 1, "b": 0.5}]))
    | a | b |
    |---|---|
    | 1 | 0.5 |
    """
    if not rows:
        return "*none*"
    header = "| " + " | ".join(rows[0]) + " |"
    lines = ["| " + " | ".join(map(format_value, row.values())) + " |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *lines])


def format_value(value: Any) -> str:
    """Show a value to people: floats with four digits, nothing as a dash.

    >>> format_value(0.123456), format_value(None), format_value("text")
    ('0.1235', '—', 'text')
    """
    if value is None:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown_picture(image: np.ndarray, alt: str, num_pictures: int = 1) -> str:
    """Embed a uint8 image, made smaller until `num_pictures` such images fit on a card."""
    png = png_bytes(image)
    while len(png) > _MAX_PICTURE_BYTES / num_pictures:
        size = (image.shape[1] * 3 // 4, image.shape[0] * 3 // 4)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        png = png_bytes(image)
    return f"![{alt}]({data_uri(png)})"


def layout_sheet(items: Iterable[tuple[Path, Layout]]) -> np.ndarray:
    """Draw image files as thumbnails with the boxes of their layouts, eight in a row."""
    return contact_sheet(
        in_rows([draw_layout(read_square(path, _THUMBNAIL), layout, 1) for path, layout in items])
    )


def write_card(out: Path, title: str, *sections: str) -> None:
    """Write the stage's card into its artifact."""
    (out / CARD_NAME).write_text("\n\n".join([f"# {title}", *sections]) + "\n")
