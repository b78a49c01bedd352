import numpy as np
import pyarrow.compute as pc
import pytest

from data.errors import InvalidDataset
from data.layouts.layout import PerceptionAttribute, evenly_spaced, image_seed, read_layouts
from data.layouts.options import Protocol


def test_layouts_hold_things_then_stuff(layouts, dataset):
    assert len(layouts) == 12
    for layout in layouts:
        assert list(layout.is_thing) == sorted(layout.is_thing, reverse=True)
        assert all(
            (a is None) != thing
            for a, thing in zip(layout.attributes, layout.is_thing, strict=True)
        )
    assert sum(len(layout.boxes) for layout in layouts) == (
        dataset.objects.filter(pc.field("split") == "train").num_rows
    )


def test_boxes_follow_the_size_of_the_image(layouts):
    layout = layouts[0]
    assert (layout.boxes_at(layout.width, layout.height) == layout.boxes).all()
    np.testing.assert_allclose(layout.boxes_at(30, 7), layout.boxes_normalized * [30, 7, 30, 7])


def test_policies_change_attributes_of_things_alone(layouts):
    easy = layouts[0].with_policy("easy")
    assert {a for a, thing in zip(easy.attributes, easy.is_thing, strict=True) if thing} == {"easy"}
    assert easy.attributes[-1] is None
    assert layouts[0].with_policy("origin").attributes == layouts[0].attributes


def test_filters_count_things(dataset, attributes):
    kept = read_layouts(dataset, attributes, "train", Protocol(min_objects=5, max_objects=6))
    assert kept
    assert all(5 <= layout.is_thing.sum() <= 6 for layout in kept)


def test_attributes_of_another_data_set_are_refused(dataset, attributes):
    with pytest.raises(InvalidDataset, match="another data set"):
        read_layouts(dataset, attributes.slice(0, 3), "train")


def test_evenly_spaced_takes_first_and_last():
    assert evenly_spaced([0, 1, 2, 3, 4], 3) == [0, 2, 4]
    assert evenly_spaced([0, 1], 5) == [0, 1]


def test_image_seeds_do_not_collide():
    assert len({image_seed(0, image_id, k) for image_id in range(500) for k in range(4)}) == 2000


def test_an_empty_attribute_table_is_refused(dataset, attributes):
    with pytest.raises(InvalidDataset, match=r"empty for split train: run .* extract-attributes"):
        read_layouts(dataset, attributes.slice(0, 0), "train")


def test_single_boxes_get_other_attributes(layouts):
    layout = layouts[0].with_policy("easy")
    changed = layout.with_attributes({1: PerceptionAttribute.HARD})
    assert changed.attributes[1] == "hard"
    assert changed.attributes[:1] + changed.attributes[2:] == (
        layout.attributes[:1] + layout.attributes[2:]
    )
    stuff = list(layout.is_thing).index(False)
    with pytest.raises(ValueError, match="is of stuff"):
        layout.with_attributes({stuff: PerceptionAttribute.HARD})


def test_a_class_may_have_a_policy_of_its_own(layouts):
    layout = layouts[0]
    chosen = int(layout.category_ids[0])
    mixed = layout.with_policy("easy", {chosen: "hard"})
    for key, thing, attribute in zip(
        layout.category_ids, layout.is_thing, mixed.attributes, strict=True
    ):
        assert attribute == (None if not thing else "hard" if key == chosen else "easy")
