import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data.attributes import AttributeConfig, extract_attributes, match_boxes
from data.boxes import iou
from data.tables import DETECTIONS


def brute_force(boxes, labels, found, found_labels, *, class_aware):
    best = []
    for box, label in zip(boxes, labels, strict=True):
        overlaps = [
            0.0 if class_aware and label != other else float(iou(box[None], candidate[None])[0, 0])
            for candidate, other in zip(found, found_labels, strict=True)
        ]
        best.append(max(overlaps, default=0.0))
    return best


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 6), st.booleans())
def test_matching_equals_a_loop(seed, num_boxes, num_detections, class_aware):
    rng = np.random.default_rng(seed)

    def draw(count):
        corners = rng.uniform(0, 10, (count, 2, 2))
        return np.concatenate([corners.min(1), corners.max(1)], axis=1), rng.integers(0, 3, count)

    (boxes, labels), (found, found_labels) = draw(num_boxes), draw(num_detections)
    matches = match_boxes(boxes, labels, found, found_labels, class_aware=class_aware)
    expected = brute_force(boxes, labels, found, found_labels, class_aware=class_aware)
    assert matches.best_iou.tolist() == expected
    assert ((matches.detection < 0) == (matches.best_iou == 0)).all()


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
    at_threshold = detections_of(dataset, score=0.25)
    assert labels(dataset, at_threshold, score_threshold=0.25) == {"hard"}
    assert labels(dataset, at_threshold, score_threshold=0.24) == {"easy"}


def test_an_iou_at_the_threshold_is_hard():
    box = np.array([[0.0, 0, 2, 1]])
    matches = match_boxes(box, np.array([1]), np.array([[0.0, 0, 1, 1]]), np.array([1]))
    assert matches.best_iou[0] == 0.5
    assert not matches.best_iou[0] > AttributeConfig().iou_threshold


def test_the_matched_detection_is_recorded(dataset):
    table = extract_attributes(dataset, detections_of(dataset), "train", AttributeConfig())
    assert table["matched_category_id"].to_pylist() == table["category_id"].to_pylist()
    assert set(table["matched_score"].to_pylist()) == {float(np.float32(0.9))}
