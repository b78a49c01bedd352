"""The report: one self-contained HTML page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

from data.layouts.gallery import data_uri
from tasks.pages.html import write_page

_BODY = """<table>{% for name, value in results.items() %}
<tr><td>{{ name }}</td><td>{{ value | number }}</td></tr>{% endfor %}
</table>
{% for title, rows in tables.items() %}<h2>{{ title }}</h2>
{{ table(rows) }}
{% endfor %}
<h2>Gallery: the same layouts, {{ gallery_rows }} (green easy, red hard)</h2>
<p class="gallery"><img src="{{ gallery }}" alt="rows: {{ gallery_rows }}"></p>
<h2>Generator training</h2>
<p><img src="{{ curves }}" alt="loss curves"></p>
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
    gallery_rows: Sequence[str],
) -> None:
    """Write the page.

    Args:
        results: headline numbers.
        tables: title to rows of the same keys; none may be empty.
        curves: PNG of the loss curves.
        gallery: PNG of the contact sheet.
        gallery_rows: what its rows show.
    """
    write_page(
        path,
        "detdiffusion report",
        _BODY,
        results=results,
        tables=tables,
        curves=data_uri(curves),
        gallery=data_uri(gallery),
        gallery_rows=", ".join(gallery_rows),
    )


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
    return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """Close a figure and return it as PNG."""
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
