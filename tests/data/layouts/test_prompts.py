import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.errors import LayoutOverflow
from data.layouts.layout import Layout, PerceptionAttribute
from data.layouts.prompts import LocationGrid, Prompt, build_prompt

NAMES = {1: "traffic-light", 2: "cat", 3: "sky"}


def words(text):
    return list(range(len(text.split())))


def layout():
    return Layout(
        image_id=7,
        width=100,
        height=50,
        boxes=np.array([[0.0, 0, 100, 50], [10, 10, 20, 20], [0, 0, 100, 25]]),
        category_ids=np.array([1, 2, 3]),
        is_thing=np.array([True, True, False]),
        attributes=(PerceptionAttribute.EASY, PerceptionAttribute.HARD, None),
        masks=(None, None, None),
    )


def test_the_prompt_is_geodiffusions_with_attributes():
    prompt = build_prompt(layout(), NAMES, LocationGrid(4, 4), words, 77)
    assert prompt.text == (
        "An image with traffic light <l0> <l15> <easy> cat <l4> <l5> <hard> sky <l0> <l11>"
    )
    assert prompt.spans == ((4, 9), (9, 13), (13, 16))
    assert prompt.omitted == ()


def test_floor_binning_names_the_cell_that_holds_the_point():
    grid = LocationGrid(4, 4, "floor")
    assert [grid.index(x, 0) for x in (0, 0.24, 0.25, 0.99, 1)] == [0, 0, 1, 3, 3]
    assert [LocationGrid(4, 4).index(x, 0) for x in (0, 0.16, 0.17, 1)] == [0, 0, 1, 3]


def test_too_long_a_prompt_is_an_error_that_names_the_image():
    with pytest.raises(LayoutOverflow, match=r"image 7: 3 objects need 17 .* from box 2 on"):
        build_prompt(layout(), NAMES, LocationGrid(4, 4), words, 16)


def test_largest_first_keeps_the_largest_and_reports_the_others():
    grid = LocationGrid(4, 4)
    prompt = build_prompt(layout(), NAMES, grid, words, 14, overflow="largest-first")
    assert prompt.objects == (0, 2)
    assert prompt.omitted == (1,)
    assert prompt.spans == ((4, 9), (9, 12))


def test_without_a_grid_places_stay_out():
    assert "<l" not in build_prompt(layout(), NAMES, None, words, 77).text


def test_the_prompt_of_a_layout_without_boxes_is_empty():
    empty = replace(layout(), boxes=np.zeros((0, 4)), category_ids=np.zeros(0), attributes=())
    assert build_prompt(empty, NAMES, LocationGrid(4, 4), words, 77) == Prompt("", (), ())


def test_a_prompt_with_room_for_no_box_is_refused():
    with pytest.raises(LayoutOverflow, match="none of its boxes fits into 6 tokens"):
        build_prompt(layout(), NAMES, LocationGrid(4, 4), words, 6, overflow="largest-first")


def test_the_sample_layouts_have_the_golden_prompts(layouts, dataset):
    """A change of the prompt shows here; `GOLDEN=write pytest` accepts it."""
    names = {item.category_id: item.name for item in dataset.categories}
    prompts = [
        build_prompt(item, names, LocationGrid(256, 256, binning), words, 77).text
        for binning in ("round", "floor")
        for item in layouts
    ]
    golden = Path(__file__).parents[2] / "golden" / "prompts.txt"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text("\n".join(prompts) + "\n")
    assert prompts == golden.read_text().splitlines()
