import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from data.attributes.labelling import extract_attributes
from data.attributes.options import AttributeConfig
from data.layouts.layout import read_layouts
from data.vocabulary.tables import DETECTIONS


def detections_of(dataset, *, shift=0.0, score=0.9):
    """A perfect detector's output, moved right by `shift` of each box's width."""
    objects = dataset.objects.filter(dataset.objects["is_thing"])
    offset = (objects["x_max"].to_numpy() - objects["x_min"].to_numpy()) * shift
    return pa.table(
        {
            "split": objects["split"],
            "image_id": objects["image_id"],
            "category_id": objects["category_id"],
            "score": pa.array(np.full(objects.num_rows, score, np.float32)),
            "detector": ["perfect"] * objects.num_rows,
            **{
                name: pa.array((objects[name].to_numpy() + move).astype(np.float32))
                for name, move in (("x_min", offset), ("y_min", 0), ("x_max", offset), ("y_max", 0))
            },
        },
        schema=DETECTIONS,
    )


def labels(dataset, detections, **options):
    table = extract_attributes(dataset, detections, "train", AttributeConfig(**options))
    return set(table["attribute"].to_pylist())


def test_perfect_detections_make_everything_easy(dataset):
    assert labels(dataset, detections_of(dataset)) == {"easy"}


def test_no_detections_make_everything_hard(dataset):
    assert labels(dataset, DETECTIONS.empty_table()) == {"hard"}


def test_a_score_at_the_threshold_is_not_kept(dataset):
    at_threshold = detections_of(dataset, score=0.3)
    assert labels(dataset, at_threshold, score_threshold=0.3) == {"hard"}
    assert labels(dataset, at_threshold, score_threshold=0.24) == {"easy"}


def one_object(dataset):
    """The first training object, its row of detections doubled as often as asked for."""
    perfect = detections_of(dataset)
    row = dataset.objects.filter(pc.field("is_thing")).slice(0, 1).to_pylist()[0]
    return row, perfect.slice(0, 1)


def changed(detection, **columns):
    values = detection.to_pylist()[0] | columns
    return pa.Table.from_pylist([values], schema=DETECTIONS)


def label_of(dataset, row, detections, **options):
    table = extract_attributes(dataset, detections, row["split"], AttributeConfig(**options))
    return table.filter(pc.field("object_id") == row["object_id"]).to_pylist()[0]


def test_an_iou_at_the_threshold_is_hard(dataset):
    row, found = one_object(dataset)
    half = changed(found, x_max=(row["x_min"] + row["x_max"]) / 2)
    best = label_of(dataset, row, half)["best_iou"]
    assert 0 < best < 1
    assert label_of(dataset, row, half, iou_threshold=best)["attribute"] == "hard"
    below = float(np.nextafter(best, 0))
    assert label_of(dataset, row, half, iou_threshold=below)["attribute"] == "easy"


def test_of_equal_ious_the_higher_score_is_the_match(dataset):
    row, found = one_object(dataset)
    order = [
        changed(found, score=score, category_id=k) for k, score in ((5, 0.5), (6, 0.9), (7, 0.9))
    ]
    match = label_of(dataset, row, pa.concat_tables(order))
    assert match["matched_score"] == pytest.approx(0.9)
    assert match["matched_category_id"] == 6


def test_class_aware_matching_wants_the_own_class(dataset):
    row, found = one_object(dataset)
    other = changed(found, category_id=row["category_id"] + 1)
    assert label_of(dataset, row, other)["attribute"] == "easy"
    assert label_of(dataset, row, other, class_aware=True)["attribute"] == "hard"
    assert label_of(dataset, row, found, class_aware=True)["attribute"] == "easy"


@pytest.mark.parametrize("matching", ["hungarian", "greedy"])
def test_one_to_one_makes_no_two_boxes_easy_by_one_detection(dataset, matching):
    row, found = one_object(dataset)
    objects = pa.Table.from_pylist([row, row | {"object_id": 10**6}], schema=dataset.objects.schema)
    twins = type("Twins", (), {"objects": objects})()

    def easy(**options):
        table = extract_attributes(twins, found, row["split"], AttributeConfig(**options))
        return table["attribute"].to_pylist().count("easy")

    assert easy() == 2
    assert easy(matching=matching) == 1


def test_stuff_has_an_attribute_only_if_asked_for(dataset):
    perfect = detections_of(dataset)
    things = extract_attributes(dataset, perfect, "train", AttributeConfig())
    assert set(things["is_thing"].to_pylist()) == {True}
    every = extract_attributes(dataset, perfect, "train", AttributeConfig(stuff="literal"))
    stuff = every.filter(~pc.field("is_thing"))
    objects = dataset.objects.filter((pc.field("split") == "train") & ~pc.field("is_thing"))
    assert stuff.num_rows == objects.num_rows
    assert every.slice(0, things.num_rows).equals(things)
    layout = read_layouts(dataset, every, "train")[0]
    assert None not in layout.attributes
    assert set(layout.with_policy("hard").attributes) == {"hard"}
    plain = read_layouts(dataset, things, "train")[0].with_policy("hard")
    assert [item is None for item in plain.attributes] == (~plain.is_thing).tolist()


def test_the_matched_detection_is_recorded(dataset):
    table = extract_attributes(dataset, detections_of(dataset), "train", AttributeConfig())
    assert table["matched_category_id"].to_pylist() == table["category_id"].to_pylist()
    assert set(table["matched_score"].to_pylist()) == {float(np.float32(0.9))}
