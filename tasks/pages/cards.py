"""Cards: the Markdown page and pictures by which a step shows its artifact in the UI and report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.layouts.gallery import data_uri, png_bytes
from tasks.pages.numbers import format_value

CARD_NAME = "card.md"

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


def narrow_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Render rows as `markdown_table` does; what all that have it have alike stands below, not in columns.

    The UI has a panel beside a card that covers what is wide.

    >>> print(narrow_table([{"a": 1, "b": 5, "c": None}, {"a": 2, "b": 5, "c": 0.5}]))
    | a |
    |---|
    | 1 |
    | 2 |
    <BLANKLINE>
    In all rows that have it: b 5 · c 0.5
    """
    names = list(rows[0])[1:] if len(rows) > 1 else []
    found = {
        name: {format_value(row[name]) for row in rows} - {format_value(None)} for name in names
    }
    shared = {name: value for name, values in found.items() if len(values) == 1 for value in values}
    left = [{name: value for name, value in row.items() if name not in shared} for row in rows]
    below = " · ".join(f"{name} {value}" for name, value in shared.items())
    return "\n\n".join(
        [markdown_table(left), *([f"In all rows that have it: {below}"] if below else [])]
    )


def markdown_picture(image: np.ndarray, alt: str, num_pictures: int = 1) -> str:
    """Embed a uint8 image, made smaller until `num_pictures` such images fit on a card."""
    png = png_bytes(image)
    while len(png) > _MAX_PICTURE_BYTES / num_pictures:
        size = (image.shape[1] * 3 // 4, image.shape[0] * 3 // 4)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        png = png_bytes(image)
    return f"![{alt}]({data_uri(png)})"


def write_card(out: Path, title: str, *sections: str) -> None:
    """Write the stage's card into its artifact."""
    (out / CARD_NAME).write_text("\n\n".join([f"# {title}", *sections]) + "\n")
