"""The report: one self-contained HTML page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

from data.gallery import data_uri
from tasks.cards import format_value

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>detdiffusion report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #dde3ea; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f6f9; }
img { max-width: 100%; } .gallery img { image-rendering: pixelated; }
</style></head><body>
<h1>detdiffusion report</h1>
<table>{% for name, value in results.items() %}
<tr><td>{{ name }}</td><td>{{ value | number }}</td></tr>{% endfor %}
</table>
{% for title, rows in tables.items() %}<h2>{{ title }}</h2>
<table><tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row.values() %}<td>{{ value | number }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
<h2>Gallery: the same layouts, real, origin, easy, hard (green easy, red hard)</h2>
<p class="gallery"><img src="{{ gallery }}" alt="rows: real, origin, easy, hard"></p>
<h2>Generator training</h2>
<p><img src="{{ curves }}" alt="loss curves"></p>
</body></html>
"""

_CURVES = {
    "loss_ldm": "denoising loss L_ldm",
    "loss_perception": "perception loss L_p",
    "mask_iou": "mask IoU of the perception head",
}


def write_report(
    path: Path,
    *,
    results: Mapping[str, float],
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    curves: bytes,
    gallery: bytes,
) -> None:
    """Write the page.

    Args:
        results: headline numbers.
        tables: title to rows of the same keys; none may be empty.
        curves: PNG of the loss curves.
        gallery: PNG of the contact sheet.
    """
    environment = Environment(autoescape=True)
    environment.filters["number"] = format_value
    page = environment.from_string(_PAGE).render(
        results=results, tables=tables, curves=data_uri(curves), gallery=data_uri(gallery)
    )
    path.write_text(page, encoding="utf-8")


def loss_curves(metrics: Sequence[Mapping[str, float]]) -> bytes:
    """Plot the training metrics over the steps, smoothed over a fiftieth of the run; PNG bytes."""
    shown = {name: title for name, title in _CURVES.items() if name in metrics[-1]}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.2 * len(shown), 3), squeeze=False)
    window = max(len(metrics) // 50, 1)
    for axis, (name, title) in zip(axes[0], shown.items(), strict=True):
        known = [(row["step"], row[name]) for row in metrics if name in row]
        steps, values = np.array(known).T
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axis.plot(steps[window - 1 :], smooth)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
