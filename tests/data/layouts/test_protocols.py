import json

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pydantic import ValidationError

from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, SplitConfig
from data.layouts.layout import read_layouts
from data.layouts.options import PROTOCOLS, Protocol, protocol_of, published_counts
from data.layouts.protocols import (
    Selection,
    above_area,
    select,
    with_count,
    without_crowds,
    without_other,
)
from data.vocabulary.tables import IMAGES, OBJECTS, Category, Dataset

CATEGORIES = (Category(1, "cat", True), Category(100, "sky", False), Category(183, "other", False))


def images(*sizes):
    rows = [
        {"split": "val", "image_id": i + 1, "file_name": f"{i}.png", "width": w, "height": h}
        for i, (w, h) in enumerate(sizes)
    ]
    return pa.Table.from_pylist(rows, schema=IMAGES)


def thing(image_id, width=50.0, height=50.0, **changes):
    row = {
        "split": "val",
        "object_id": 0,
        "image_id": image_id,
        "category_id": 1,
        "is_thing": True,
        "is_crowd": False,
        "x_min": 0.1,
        "y_min": 0.3,
        "x_max": 0.1 + width,
        "y_max": 0.3 + height,
        "area": 1.0,
        "mask": None,
        "difficulty": None,
    }
    return row | changes


def stuff(image_id, category_id=100, **changes):
    return thing(image_id, category_id=category_id, is_thing=False, **changes)


def table(*rows):
    return pa.Table.from_pylist([row | {"object_id": i} for i, row in enumerate(rows)], OBJECTS)


def selection(*rows, num_images=1):
    return Selection(table(*rows), np.arange(1, num_images + 1))


def test_crowds_go():
    left = without_crowds(selection(thing(1), thing(1, is_crowd=True)))
    assert left.objects["object_id"].to_pylist() == [0]
    assert left.dropped == {"crowd (objects)": 1}


def test_other_goes_but_a_thing_named_other_stays():
    categories = (*CATEGORIES, Category(5, "other", True))
    left = without_other(selection(stuff(1), stuff(1, 183), thing(1, category_id=5)), categories)
    assert left.objects["object_id"].to_pylist() == [0, 2]
    assert left.dropped == {"stuff class other (objects)": 1}


@pytest.mark.parametrize(
    ("width", "height", "kept"),
    [(20, 10, False), (20.01, 10, True), (19.99, 10, False), (200, 1, False), (100, 100, True)],
)
def test_two_per_cent_is_not_above_two_per_cent(width, height, kept):
    left = above_area(selection(thing(1, width, height)), images((100, 100)), 0.02)
    assert left.objects.num_rows == kept
    assert sum(left.dropped.values()) == 1 - kept


def test_area_is_measured_against_the_own_image():
    rows = (thing(1, 10, 10), thing(2, 10, 10))
    left = above_area(selection(*rows, num_images=2), images((50, 50), (100, 100)), 0.02)
    assert left.objects["image_id"].to_pylist() == [1]


@pytest.mark.parametrize(("count", "kept"), [(0, 0), (2, 0), (3, 1), (8, 1), (9, 0)])
def test_three_to_eight_include_both_ends(count, kept):
    left = with_count(selection(*[thing(1)] * count), 3, 8)
    assert len(left.image_ids) == kept
    assert left.objects.num_rows == count * kept
    assert sum(left.dropped.values()) == 1 - kept


def test_no_limits_keep_images_without_objects():
    assert len(with_count(selection(num_images=2), 0, 0).image_ids) == 2


@pytest.mark.parametrize(("counted", "kept"), [("things", [2]), ("things and stuff", [1, 2])])
def test_stuff_counts_where_it_is_said_to(counted, kept):
    rows = [thing(1), thing(1), stuff(1), thing(2), thing(2), thing(2)]
    left = with_count(selection(*rows, num_images=2), 3, 8, counted)
    assert left.image_ids.tolist() == kept


LAMA = [
    ([thing(1)] * 3, True),
    ([thing(1)] * 2, False),
    ([thing(1)] * 2 + [stuff(1)], True),
    ([thing(1)] * 2 + [stuff(1, 183)], False),
    ([thing(1)] * 2 + [thing(1, is_crowd=True)], False),
    ([thing(1)] * 2 + [stuff(1, width=20.0, height=10.0)], False),
    ([thing(1)] * 8 + [thing(1, width=14.0, height=14.0)], True),
    ([thing(1)] * 8 + [stuff(1)], False),
    ([stuff(1)] * 3, True),
]


@pytest.mark.parametrize(("rows", "kept"), LAMA)
def test_lama_val(rows, kept):
    left = select(PROTOCOLS["lama-val"], images((100, 100)), table(*rows), CATEGORIES)
    assert len(left.image_ids) == kept


SYNTHETIC = [
    ([thing(1)] * 3, True),
    ([thing(1)] * 2 + [stuff(1)] * 9, False),
    ([thing(1, 1.0, 1.0)] * 8 + [stuff(1)] * 9, True),
    ([thing(1)] * 9, False),
    ([thing(1)] * 8 + [thing(1, is_crowd=True)], True),
]


@pytest.mark.parametrize(("rows", "kept"), SYNTHETIC)
def test_synthetic_train(rows, kept):
    left = select(PROTOCOLS["synthetic-train"], images((100, 100)), table(*rows), CATEGORIES)
    assert len(left.image_ids) == kept


def test_what_is_dropped_and_kept_adds_up():
    rows = [*[thing(1)] * 4, thing(1, is_crowd=True), stuff(1, 183), thing(2), thing(1, 1.0, 1.0)]
    left = select(PROTOCOLS["lama-val"], images((100, 100), (9, 9)), table(*rows), CATEGORIES)
    assert (left.objects.num_rows, left.image_ids.tolist()) == (4, [1])
    assert left.dropped == {
        "crowd (objects)": 1,
        "stuff class other (objects)": 1,
        "box not above 2.00% of the image (objects)": 1,
        "fewer than 3 objects (images)": 1,
        "more than 8 objects (images)": 0,
    }


def test_a_protocol_chooses_layouts_of_things_and_stuff(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    picture = {"id": 1, "file_name": "a.png", "width": 100, "height": 100}

    def write(name, category, count):
        rows = [
            {"id": i, "image_id": 1, "category_id": category["id"], "bbox": [1, 1, 50, 50]}
            for i in range(count)
        ]
        content = {"images": [picture], "annotations": rows, "categories": [category]}
        (tmp_path / name).write_text(json.dumps(content))

    write("things.json", {"id": 1, "name": "cat"}, 2)
    write("stuff.json", {"id": 100, "name": "sky"}, 1)
    split = SplitConfig(
        instances=tmp_path / "things.json", stuff=tmp_path / "stuff.json", images=tmp_path
    )
    ingest(IngestConfig(train=split, val=split), tmp_path / "out")
    dataset = Dataset(tmp_path / "out")
    (layout,) = read_layouts(dataset, None, "val", PROTOCOLS["lama-val"])
    assert layout.is_thing.tolist() == [True, True, False]
    assert read_layouts(dataset, None, "val", PROTOCOLS["synthetic-train"]) == []
    assert len(read_layouts(dataset, None, "val", Protocol(min_objects=0, max_objects=2))) == 1


def test_a_named_protocol_has_its_published_counts_and_no_other_has():
    assert "3,097" in published_counts(protocol_of("run", "lama-val"))
    assert published_counts(Protocol(min_objects=3)) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_objects": 4, "max_objects": 3}, "no image has at least 4 and at most 3"),
        ({"min_things": 4}, "unknown option"),
        ({"min_area_fraction": 2}, "less than 1"),
    ],
)
def test_a_protocol_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        Protocol.model_validate(given)
