"""Plots for pages, as PNG; their letters are large enough for a telephone."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

from models.metrics.comparison import Verdict
from models.metrics.interval import Interval, format_interval

_WIDTH = 6.0
"""Of a figure, inches. A telephone shows it at a third of that."""

_DPI = 130

_STYLE: Any = {
    "font.size": 13,
    "axes.labelsize": 13,
    "axes.titlesize": 14,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "text.parse_math": False,  # names of the user's may have dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
}

_INK, _FAINT = "#1c2430", "#8a94a3"
_COLOURS: dict[Verdict | None, str] = {
    "helps": "#157347",
    "costs": "#b3261e",
    "cannot tell": _FAINT,
    None: _INK,
}

_MARKS = {
    "real": ("D", _INK),
    "easy": ("^", "#1f9d57"),
    "origin": ("o", "#2f6fde"),
    "hard": ("v", "#d63c3c"),
}
"""Marker and colour of images in plots: the colours of the boxes in the galleries."""

_CURVES = {
    "loss_ldm": "denoising loss L_ldm",
    "loss_perception": "perception loss L_p",
    "mask_iou": "mask IoU of the perception head",
}

_TITLE_LETTERS = 54
"""Of a line above a panel."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number to be plotted.

    Attributes:
        label: what it is of.
        interval: infinite limits are not drawn; "one seed" stands there.
        singles: numbers that it is the mean of.
        unit: what it is in.
        verdict: what a difference shows; None for a number that is no difference.
    """

    label: str
    interval: Interval
    singles: Sequence[float] = ()
    unit: str = ""
    verdict: Verdict | None = None


def interval_plot(rows: Sequence[Estimate], unit: str, *, gains: bool = False) -> bytes:
    """Plot numbers below each other with their intervals, each under its label and its digits.

    Args:
        rows: the first one at the top.
        gains: draw a line at zero, and show signs.
    """
    with _style():
        figure, axes = plt.subplots(figsize=(_WIDTH, 0.95 + 0.62 * len(rows)))
        for position, row in enumerate(rows):
            _draw(axes, -position, row)
            _write(axes, 0, 0.36 - position, row.label, weight="bold")
            _write(axes, 1, 0.36 - position, _digits(row, sign=gains), ha="right")
        _finish(axes, unit, (0.7 - len(rows), 0.65), zero=gains)
        return figure_png(figure)


def effect_panels(rows: Sequence[Estimate]) -> bytes:
    """Plot effects in units of their own below each other, each with a line at zero."""
    titles = [textwrap.wrap(row.label, _TITLE_LETTERS) for row in rows]
    height = 1.35 * len(rows) + 0.25 * sum(map(len, titles))
    with _style():
        figure, panels = plt.subplots(
            len(rows), 1, figsize=(_WIDTH, height), squeeze=False,
            layout=ConstrainedLayoutEngine(h_pad=0.12),
        )  # fmt: skip
        for axes, row, title in zip(panels[:, 0], rows, titles, strict=True):
            _draw(axes, 0, row)
            axes.set_title("\n".join(title), loc="left", fontsize=12, weight="bold")
            _finish(axes, row.unit, (-0.5, 0.5), zero=True)
        return figure_png(figure)


def recall_plot(recalls: Mapping[str, Mapping[str, float]]) -> bytes:
    """Plot the recall of real and generated images, a line of marks for each scorer.

    Args:
        recalls: scorer to images (`real` or a policy) to recall.
    """
    with _style():
        figure, axes = plt.subplots(figsize=(_WIDTH, 1.5 + 0.6 * len(recalls)))
        for position, (scorer, recall) in enumerate(recalls.items()):
            for images, value in recall.items():
                marker, colour = _MARKS.get(images, ("s", _FAINT))
                label = images if position == 0 else None
                axes.plot(
                    value, -position, marker, color=colour, markersize=11, label=label, alpha=0.85
                )
            _write(axes, 0, 0.38 - position, scorer, weight="bold")
        _finish(axes, "recall", (0.6 - len(recalls), 0.65), zero=False)
        axes.legend(
            ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False, handletextpad=0.1
        )
        return figure_png(figure)


def loss_curves(metrics: Sequence[Mapping[str, float]]) -> dict[str, bytes]:
    """Plot the training metrics over the steps, smoothed over a fiftieth of the run.

    Returns:
        Title to PNG, for what was measured.
    """
    window = max(len(metrics) // 50, 1)
    curves = {}
    for name, title in _CURVES.items():
        known = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
        if len(known) >= window:
            curves[title] = _curve(np.array(known, dtype=np.float64), window, title)
    return curves


def _curve(points: np.ndarray, window: int, title: str) -> bytes:
    steps, values = points.T
    with _style():
        figure, axes = plt.subplots(figsize=(_WIDTH, 3.4))
        axes.plot(steps, values, color=_FAINT, linewidth=0.6, alpha=0.5)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=_INK, linewidth=2)
        low, high = np.percentile(values, [0.5, 99.5])
        margin = 0.05 * (high - low) or 0.05
        axes.set(title=title, xlabel="step", ylim=(low - margin, high + margin))
        axes.grid(alpha=0.3)
        return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """Close a figure and return it as PNG."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    plt.close(figure)
    return buffer.getvalue()


def _style() -> AbstractContextManager[None]:
    return mpl.rc_context(_STYLE)


def _draw(axes: Axes, position: float, row: Estimate) -> None:
    """Draw a number as a point, with its interval if it has one, and what it is the mean of."""
    interval, colour = row.interval, _COLOURS[row.verdict]
    if _is_finite(interval):
        limits = [interval.low, interval.high]
        axes.plot(
            limits, [position] * 2, color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6
        )
        axes.plot(limits, [position] * 2, "|", color=colour, markersize=12, markeredgewidth=2)
    if len(row.singles) > 1:
        axes.plot(row.singles, [position] * len(row.singles), "o", color=_FAINT, markersize=5)
    axes.plot(interval.value, position, "o", color=colour, markersize=9)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write over whatever lines are there; x in widths of the axes."""
    ground = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.text(x, y, text, transform=axes.get_yaxis_transform(), va="center", bbox=ground, **style)


def _digits(row: Estimate, *, sign: bool) -> str:
    digits = format_interval(row.interval, sign=sign)
    return digits if _is_finite(row.interval) else f"{digits}, one seed"


def _finish(axes: Axes, unit: str, limits: tuple[float, float], *, zero: bool) -> None:
    if zero:
        axes.axvline(0, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axes.margins(x=0.08)
    axes.set(yticks=[], ylim=limits, xlabel=unit)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.locator_params(axis="x", nbins=6)


def _is_finite(interval: Interval) -> bool:
    return math.isfinite(interval.low) and math.isfinite(interval.high)
