"""Plots are PNG of a size that suits a page, from whatever numbers there are."""

import io
import math

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from models.metrics.interval import Interval
from tasks.pages.plots import Estimate, effect_panels, interval_plot, loss_curves, recall_plot


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def has_colour(png, rgb):
    """Whether something of a colour is drawn."""
    return bool((np.abs(pixels(png) - rgb).max(axis=-1) < 12).any())


GREEN, RED = (0x15, 0x73, 0x47), (0xB3, 0x26, 0x1E)


@pytest.fixture(autouse=True)
def _no_figure_stays_open():
    yield
    assert not plt.get_fignums()


def test_intervals_grow_with_their_rows():
    rows = [Estimate(f"arm $x_{k}$", Interval(0.5, 0.4, 0.6), (0.45, 0.55)) for k in range(6)]
    few, many = (interval_plot(rows[:count], "mAP") for count in (2, 6))
    assert few.startswith(b"\x89PNG")
    assert pixels(few).shape[1] == pixels(many).shape[1] == 780
    assert 200 < pixels(few).shape[0] < pixels(many).shape[0] < 800
    assert 3_000 < len(many) < 100_000


def test_a_single_seed_is_a_point_alone():
    """The line of an interval is ink at 60%."""

    def line(low, high):
        png = interval_plot([Estimate("real", Interval(0.5, low, high), (0.5,))], "mAP")
        return (np.abs(pixels(png) - (119, 124, 131)).max(axis=-1) < 3).sum()

    assert line(0.4, 0.6) > 1000
    assert line(-math.inf, math.inf) < 100


def test_gains_are_coloured_by_verdict_and_not_by_their_interval_alone():
    gain = Interval(0.1, 0.05, 0.15)  # beyond zero, but not after Holm's correction
    assert has_colour(
        interval_plot([Estimate("a", gain, verdict="helps")], "mAP", gains=True), GREEN
    )
    assert not has_colour(
        interval_plot([Estimate("a", gain, verdict="cannot tell")], "mAP", gains=True), GREEN
    )
    costs = Estimate("a", Interval(-0.1, -0.15, -0.05), verdict="costs")
    assert has_colour(interval_plot([costs], "mAP", gains=True), RED)


def test_effects_have_a_panel_each():
    rows = [
        Estimate(
            "A claim of very many words " * 4, Interval(20.0, 10.0, 30.0), (19, 21), "FID", "helps"
        ),
        Estimate("one seed", Interval(0.01, -math.inf, math.inf), (0.01,), "mAP", "cannot tell"),
    ]
    one, two = effect_panels(rows[1:]), effect_panels(rows)
    assert pixels(two).shape[0] > 1.8 * pixels(one).shape[0]
    assert has_colour(two, GREEN)
    assert not has_colour(one, GREEN)


def test_recall_shows_all_scorers_and_images():
    png = recall_plot(
        {
            "a": {"real": 0.9, "easy": 0.9, "origin": 0.8, "hard": 0.1, "other": 0.3},
            "b": {"real": 1.0},
        }
    )
    for colour in ((0x1F, 0x9D, 0x57), (0x2F, 0x6F, 0xDE), (0xD6, 0x3C, 0x3C)):
        mixed = tuple(round(0.85 * value + 0.15 * 255) for value in colour)
        assert has_colour(png, mixed)


def test_curves_are_one_picture_each_of_what_was_measured():
    metrics = [{"step": float(k), "loss_ldm": 1 / k} for k in range(1, 200)]
    metrics[::10] = [row | {"mask_iou": 0.5} for row in metrics[::10]]
    curves = loss_curves(metrics)
    assert list(curves) == ["denoising loss L_ldm", "mask IoU of the perception head"]
    assert all(pixels(png).shape == (442, 780, 3) for png in curves.values())
    assert loss_curves([]) == {}
