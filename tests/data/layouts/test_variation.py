"""New layouts: inside the image, by the protocol, as things overlap and are in real ones."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InvalidDataset
from data.layouts.layout import Layout, PerceptionAttribute
from data.layouts.variation import new_layouts
from data.layouts.weakness import Weakness

SOURCES = ("jittered", "recombined", "aimed")
MINIMUM = 0.02


def corner_boxes(draw, side):
    width, height = (draw(st.floats(0.15, 1)) for _ in range(2))
    left, top = draw(st.floats(0, 1)) * (1 - width), draw(st.floats(0, 1)) * (1 - height)
    return [left * side[0], top * side[1], (left + width) * side[0], (top + height) * side[1]]


@st.composite
def some_layouts(draw):
    made = []
    for image_id in range(1, draw(st.integers(1, 4)) + 1):
        side = (draw(st.integers(20, 900)), draw(st.integers(20, 900)))
        things, stuff = draw(st.integers(1, 5)), draw(st.integers(0, 2))
        count = things + stuff
        attributes = [draw(st.sampled_from([*PerceptionAttribute, None])) for _ in range(things)]
        made.append(
            Layout(
                image_id=image_id,
                width=side[0],
                height=side[1],
                boxes=np.array([corner_boxes(draw, side) for _ in range(count)]),
                category_ids=np.array([10 * image_id + k for k in range(count)]),
                is_thing=np.arange(count) < things,
                attributes=(*attributes, *[None] * stuff),
                masks=("mask",) * count,
            )
        )
    return made


def worst_overlap(layout):
    """By a slow loop."""
    worst, boxes = 0.0, layout.boxes[layout.is_thing]
    for i, (a, b, c, d) in enumerate(boxes):
        for e, f, g, h in boxes[:i]:
            common = max(min(c, g) - max(a, e), 0) * max(min(d, h) - max(b, f), 0)
            worst = max(worst, common / min((c - a) * (d - b), (g - e) * (h - f)))
    return worst


def mirrored(boxes, width):
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


@pytest.mark.parametrize("source", SOURCES)
@given(layouts=some_layouts(), seed=st.integers(-5, 5))
def test_new_layouts_are_what_the_protocol_allows(source, layouts, seed):
    by_id = {layout.image_id: layout for layout in layouts}
    for new in new_layouts(layouts, source, 3, seed=seed, min_area_fraction=MINIMUM):
        base = by_id[new.image_id]
        assert (new.width, new.height) == (base.width, base.height)
        assert (new.is_thing == base.is_thing).all()
        assert (new.boxes[:, :2] >= -1e-9).all()
        assert (new.boxes[:, 2:] <= np.array([new.width, new.height]) + 1e-9).all()
        sides = new.boxes[:, 2:] - new.boxes[:, :2]
        fractions = sides.prod(axis=1)[new.is_thing] / (new.width * new.height)
        assert (fractions > MINIMUM - 1e-9).all()
        assert new.masks == (None,) * len(new.boxes)
        stuff = ~base.is_thing
        of_base = base.boxes[stuff]
        assert (new.category_ids[stuff] == base.category_ids[stuff]).all()
        assert any(
            np.allclose(new.boxes[stuff], boxes, atol=1e-6)
            for boxes in (of_base, mirrored(of_base, base.width))
        )


@given(layouts=some_layouts(), seed=st.integers(0, 5))
def test_jittered_things_are_the_images_own_and_overlap_no_more(layouts, seed):
    by_id = {layout.image_id: layout for layout in layouts}
    for new in new_layouts(layouts, "jittered", 3, seed=seed):
        base = by_id[new.image_id]
        assert new.category_ids.tolist() == base.category_ids.tolist()
        assert new.attributes == base.attributes
        assert worst_overlap(new) <= worst_overlap(base) + 1e-9
        sides, before = ((item.boxes[:, 2:] - item.boxes[:, :2]) for item in (new, base))
        assert np.allclose(sides[:, 0] / before[:, 0], sides[:, 1] / before[:, 1])
        assert (np.abs(np.log(sides / before)) <= np.log(1.25) + 1e-6).all()


@pytest.mark.parametrize("source", ["recombined", "aimed"])
@given(layouts=some_layouts(), seed=st.integers(0, 5))
def test_recombined_things_keep_class_and_attribute(source, layouts, seed):
    pairs = {
        pair
        for item in layouts
        for pair in zip(item.category_ids.tolist(), item.attributes, strict=True)
    }
    for new in new_layouts(layouts, source, 3, seed=seed):
        assert set(zip(new.category_ids.tolist(), new.attributes, strict=True)) <= pairs


@pytest.mark.parametrize("source", SOURCES)
def test_a_layout_depends_on_seed_and_number_alone(source, layouts):
    few, many = (new_layouts(layouts, source, count, seed=3) for count in (4, 40))
    for first, second in zip(few, many, strict=False):
        assert first.image_id == second.image_id
        assert (first.boxes == second.boxes).all()
        assert (first.category_ids == second.category_ids).all()
        assert first.attributes == second.attributes
    others = new_layouts(layouts, source, 4, seed=4)
    assert any(a.boxes.tolist() != b.boxes.tolist() for a, b in zip(few, others, strict=True))
    assert len({item.boxes.tobytes() for item in many}) == 40


def test_recombined_things_are_of_several_images(layouts):
    numbered = [
        replace(item, category_ids=np.full(len(item.boxes), item.image_id)) for item in layouts
    ]
    for new in new_layouts(numbered, "recombined", 20, seed=0):
        assert len(set(new.category_ids[new.is_thing].tolist())) > 1
        assert set(new.category_ids[~new.is_thing].tolist()) == {new.image_id}


def test_aimed_things_are_drawn_in_proportion_to_the_share_of_hard_ones(scene_layouts):
    def kinds(layouts):
        return Counter(
            label for item in layouts for label in item.category_ids[item.is_thing].tolist()
        )

    hard = {label: k / 10 for k, label in enumerate(sorted(kinds(scene_layouts)))}

    def graded(layout):
        """Of class k every tenth k times hard, whatever the size."""
        attributes = tuple(
            None if not is_thing else
            PerceptionAttribute.HARD if rng.random() < hard[int(label)] else PerceptionAttribute.EASY
            for label, is_thing in zip(layout.category_ids, layout.is_thing, strict=True)
        )  # fmt: skip
        return replace(layout, attributes=attributes)

    rng = np.random.default_rng(0)
    real = [graded(layout) for layout in scene_layouts]
    made = kinds(new_layouts(real, "aimed", 2000, seed=0))
    before, weakness = kinds(real), Weakness.measured(real)
    weights = Counter()
    for layout in real:
        for label, share in zip(
            layout.category_ids[layout.is_thing], weakness.of([layout]), strict=True
        ):
            weights[int(label)] += share
    for label in before:
        share = made[label] / made.total()
        assert share == pytest.approx(weights[label] / weights.total(), abs=0.015)
    rarest, commonest = min(hard, key=hard.get), max(hard, key=hard.get)
    assert made[rarest] / before[rarest] < 0.5 * made[commonest] / before[commonest]


def test_where_nothing_is_hard_aimed_layouts_are_recombined_ones(layouts):
    easy = [
        replace(item, attributes=tuple(a and PerceptionAttribute.EASY for a in item.attributes))
        for item in layouts
    ]
    for first, second in zip(
        *(new_layouts(easy, source, 5, seed=1) for source in ("aimed", "recombined")), strict=True
    ):
        assert (first.boxes == second.boxes).all()


@pytest.mark.parametrize("source", SOURCES)
def test_layouts_of_stuff_alone_are_refused(source):
    stuff = Layout(
        1, 9, 9, np.array([[0.0, 0, 9, 9]]), np.array([5]), np.zeros(1, bool), (None,), (None,)
    )
    with pytest.raises(InvalidDataset, match=f"{source}: no layout has a thing"):
        new_layouts([stuff], source, 1, seed=0)


def test_half_of_them_are_mirrored():
    boxes = np.array([[20.0, 20, 50, 50], [0, 60, 30, 100]])
    one = Layout(1, 100, 100, boxes, np.array([1, 9]), np.arange(2) < 1, (None,) * 2, (None,) * 2)
    stuff = [item.boxes[1].tolist() for item in new_layouts([one], "jittered", 400, seed=0)]
    assert stuff.count([0, 60, 30, 100]) == pytest.approx(200, abs=40)
    assert stuff.count([70, 60, 100, 100]) == 400 - stuff.count([0, 60, 30, 100])


def test_what_an_edge_cuts_off_stays_at_it():
    boxes = np.array([[0.0, 30, 20, 50], [60, 20, 100, 70]])
    cut = Layout(1, 100, 100, boxes, np.array([1, 2]), np.ones(2, bool), (None, None), (None, None))
    for new in new_layouts([cut], "jittered", 50, seed=0):
        left, right = sorted(new.boxes.tolist())
        assert left[0] == pytest.approx(0, abs=1e-9)
        assert right[2] == pytest.approx(100, abs=1e-9)


@pytest.mark.parametrize("source", SOURCES)
def test_many_new_layouts_are_like_the_real_ones(source, scene_layouts):
    new = new_layouts(scene_layouts, source, 600, seed=0)
    real, made = (statistics(items) for items in (scene_layouts, new))
    assert made["things"] == pytest.approx(real["things"], rel=0.05)
    np.testing.assert_allclose(made["classes"], real["classes"], atol=0.03)
    assert made["hard"] == pytest.approx(real["hard"], abs=0.05)
    np.testing.assert_allclose(made["area"], real["area"], rtol=0.15)
    np.testing.assert_allclose(made["place"], real["place"], atol=0.04)
    assert made["overlap"] <= real["overlap"] + 0.03


def statistics(items):
    boxes = np.concatenate([item.boxes_normalized[item.is_thing] for item in items])
    classes = np.concatenate([item.category_ids[item.is_thing] for item in items])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return {
        "things": len(boxes) / len(items),
        "classes": np.bincount(classes, minlength=9)[1:] / len(classes),
        "hard": np.mean([value == "hard" for item in items for value in item.attributes if value]),
        "area": np.quantile((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), [0.1, 0.5, 0.9]),
        "place": [*centres.mean(axis=0), *centres.std(axis=0)],
        "overlap": np.mean([worst_overlap(item) for item in items]),
    }


@pytest.fixture(scope="module")
def scene_layouts():
    """Boxes as Scenes has them before anything is hidden or cut off."""
    from data.scenes.scenes import sample_scene

    rng = np.random.default_rng(0)
    made = []
    for image_id in range(200):
        objects = sample_scene(rng).objects
        count = len(objects)
        made.append(
            Layout(
                image_id=image_id,
                width=64,
                height=64,
                boxes=64 * np.clip([item.box for item in objects], 0, 1),
                category_ids=np.array([item.category + 1 for item in objects]),
                is_thing=np.ones(count, bool),
                attributes=tuple(
                    PerceptionAttribute("easy" if item.is_plain else "hard") for item in objects
                ),
                masks=(None,) * count,
            )
        )
    return made
