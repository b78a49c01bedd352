"""Shares of hard things by class and size, against counting by hand."""

from dataclasses import replace

import numpy as np
import pytest

from data.layouts.layout import Layout, PerceptionAttribute
from data.layouts.weakness import Weakness

EASY, HARD = PerceptionAttribute.EASY, PerceptionAttribute.HARD


def layout(things):
    """Of class, side in percent of the image's, and attribute each; with a piece of stuff."""
    boxes = np.array([*([0.0, 0, side, side] for _, side, _ in things), [0.0, 0, 100, 100]])
    labels = np.array([label for label, _, _ in things] + [99])
    attributes = (*(attribute for _, _, attribute in things), None)
    is_thing = np.arange(len(boxes)) < len(things)
    return Layout(1, 100, 100, boxes, labels, is_thing, attributes, (None,) * len(boxes))


@pytest.fixture
def real():
    """Thirty things of three sizes: of class 1 the small ones are hard, of class 2 half of the large."""
    first = [(1, 10, HARD)] * 8 + [(1, 30, EASY)] * 7 + [(2, 10, EASY)] * 2
    return [layout(first), layout([(2, 30, None)] * 3 + [(2, 60, HARD), (2, 60, EASY)] * 5)]


def test_shares_are_those_of_a_class_and_a_third_of_the_sizes(real):
    found = Weakness.measured(real)
    usual = 13 / 27  # of three things nothing is known
    assert found.usual == pytest.approx(usual)
    assert found.shares == pytest.approx(
        {
            (1, 0): (8 + 10 * usual) / 18,
            (1, 1): (0 + 10 * usual) / 17,
            (2, 0): (0 + 10 * usual) / 12,
            (2, 1): usual,
            (2, 2): (5 + 10 * usual) / 20,
        }
    )
    new = [layout([(1, 10, None), (2, 60, EASY), (1, 60, None), (7, 10, None)])]
    assert found.of(new) == pytest.approx([found.shares[1, 0], found.shares[2, 2], usual, usual])


def test_size_is_of_the_image(real):
    found = Weakness.measured(real)
    larger = [replace(item, width=200, height=200, boxes=2 * item.boxes) for item in real]
    assert found.of(larger).tolist() == found.of(real).tolist()


def test_without_attributes_nothing_is_weak(real):
    bare = [replace(item, attributes=(None,) * len(item.boxes)) for item in real]
    assert not Weakness.measured(bare).of(bare).any()


def test_a_layout_without_things_has_no_share(real):
    found = Weakness.measured(real)
    assert found.mean(layout([])) is None
    assert found.mean(layout([(1, 10, None), (2, 10, None)])) == pytest.approx(
        (found.shares[1, 0] + found.shares[2, 0]) / 2
    )
