"""Layouts drawn by the renderer of Scenes: exact labels, the look that attributes ask for, the ground."""

from dataclasses import replace

import numpy as np
import pytest

from data.layouts.layout import PerceptionAttribute
from data.scenes.layout_scene import draw_layout, scene_of
from data.scenes.scenes import render_scene
from data.scenes.writing import _labelled_scene
from data.vocabulary.boxes import iou, mask_to_box, xywh_to_xyxy
from data.vocabulary.masks import decode_mask

EASY, HARD = PerceptionAttribute


def scene(layout, seed=0):
    return scene_of(layout, np.random.default_rng(seed))


def of_things(layout):
    return replace(
        layout,
        boxes=layout.boxes[layout.is_thing],
        category_ids=layout.category_ids[layout.is_thing],
        is_thing=layout.is_thing[layout.is_thing],
        attributes=layout.attributes[: layout.is_thing.sum()],
        masks=layout.masks[: layout.is_thing.sum()],
    )


def test_labels_are_those_of_what_is_seen(layouts):
    for layout in layouts:
        drawn = draw_layout(layout, seed=1)
        rendered = render_scene(scene(layout, 1), 64)
        assert (drawn.image == rendered.image).all()
        seen = [mask for mask in rendered.masks if mask.sum() >= 16]
        assert len(drawn.annotations) == len(seen)
        assert drawn.num_hidden == layout.is_thing.sum() - len(seen)
        for item, mask in zip(drawn.annotations, seen, strict=True):
            boxes = xywh_to_xyxy(np.array(item["bbox"]))
            assert boxes.tolist() == mask_to_box(mask).tolist()
            assert (decode_mask(item["segmentation"]["counts"], 64, 64) == mask).all()


def test_things_stand_where_the_layout_has_them(layouts):
    overlaps = []
    for layout in layouts:
        for item in draw_layout(layout, seed=0).annotations:
            mine = (layout.category_ids == item["category_id"]) & layout.is_thing
            mine &= [attribute == item["attribute"] for attribute in layout.attributes]
            found = iou(layout.boxes[mine], xywh_to_xyxy(np.array([item["bbox"]])))
            overlaps.append(found.max())
    assert np.mean(overlaps) > 0.9
    assert min(overlaps) > 0.3


def test_a_thing_behind_another_is_left_out_and_counted(layouts):
    layout = of_things(layouts[0])
    boxes = np.tile([10.0, 10, 40, 40], (len(layout.boxes), 1))
    boxes[0, 3] = 41
    crates = np.full(len(boxes), 2)
    attributes = (HARD, *[EASY] * (len(boxes) - 1))
    drawn = draw_layout(
        replace(layout, boxes=boxes, category_ids=crates, attributes=attributes), seed=0
    )
    assert [item["attribute"] for item in drawn.annotations] == [HARD]
    assert drawn.num_hidden == len(boxes) - 1


def test_the_look_is_the_attributes(layouts):
    easy = [scene(layout.with_policy("easy"), seed) for seed, layout in enumerate(layouts * 5)]
    assert all(item.is_plain for one in easy for item in one.objects)
    assert not any(one.is_dark for one in easy)
    hard = [scene(layout.with_policy("hard"), seed) for seed, layout in enumerate(layouts * 5)]
    looks = [(item.contrast < 0.5, item.blur > 0) for one in hard for item in one.objects]
    assert set(looks) == {(True, False), (False, True), (True, True)}
    assert 0 < np.mean([one.is_dark for one in hard]) < 0.4
    for layout in layouts:
        mixed = scene(layout)
        assert sorted(not item.is_plain for item in mixed.objects) == sorted(
            attribute == "hard" for attribute in of_things(layout).attributes
        )


def test_without_attributes_things_look_as_in_scenes(layouts):
    drawn = [scene(layout.without_attributes(), k) for k, layout in enumerate(layouts * 20)]
    plain = [item.is_plain for one in drawn for item in one.objects]
    assert np.mean(plain) == pytest.approx(0.55 * 0.85, abs=0.05)
    assert np.mean([one.is_dark for one in drawn]) == pytest.approx(0.15, abs=0.08)


def test_the_ground_is_the_layouts(layouts):
    for layout in layouts:
        real, _ = _labelled_scene(0, 0, 64, layout.image_id - 1)
        drawn = scene(layout)
        assert drawn.grounds == real.grounds
        assert drawn.horizon == pytest.approx(real.horizon, abs=0.03)
        assert drawn.shore == pytest.approx(real.shore, abs=0.05)


def test_stuff_that_a_layout_lacks_is_drawn(layouts):
    scenes = [scene(of_things(layouts[0]), seed) for seed in range(20)]
    assert len({one.horizon for one in scenes}) == 20
    assert {one.grounds for one in scenes} >= {(2, 1), (2, 3)}
    assert all(one.shore > one.horizon for one in scenes)
    assert all((one.litter[:, 1] > one.horizon).all() for one in scenes)


def test_a_scene_depends_on_layout_and_seed_alone(layouts):
    first, again, other = (draw_layout(layouts[0], seed).image for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()
