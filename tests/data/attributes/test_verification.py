"""Verified labels: what is found, what becomes of it, and how it is counted."""

import numpy as np
import pyarrow as pa
import pytest

from data.attributes.options import VerificationOptions
from data.attributes.verification import (
    unasked_counts,
    verification_counts,
    verified_annotations,
    verify,
)
from data.vocabulary.boxes import iou
from data.vocabulary.tables import BOX_COLUMNS, DETECTIONS

NAMES = {1: "cat", 2: "dog"}
SIZES = {1: (200, 200), 2: (200, 200)}


def label(image_id, category_id, box, attribute="easy"):
    x, y, right, bottom = box
    return {
        "image_id": image_id, "category_id": category_id, "attribute": attribute, "iscrowd": 0,
        "bbox": [x, y, right - x, bottom - y], "area": (right - x) * (bottom - y),
    }  # fmt: skip


def detections(*rows):
    image_ids, category_ids, scores, boxes = zip(*rows, strict=True)
    columns = dict(zip(BOX_COLUMNS, np.array(boxes, np.float32).T, strict=True))
    return pa.table(
        {
            "split": ["train"] * len(rows),
            "image_id": image_ids,
            "category_id": category_ids,
            "score": pa.array(scores, pa.float32()),
            **columns,
            "detector": ["judge"] * len(rows),
        },
        schema=DETECTIONS,
    )


LABELS = [
    label(1, 1, (0, 0, 20, 20)),
    label(1, 1, (4, 0, 24, 20), "hard"),
    label(1, 2, (100, 100, 140, 140), "hard"),
    label(2, 2, (60, 60, 190, 190)),
]
FOUND = detections(
    (1, 1, 0.8, (1, 0, 21, 20)),  # the first cat's, and near the second too, which has none
    (1, 1, 0.3, (4, 0, 24, 20)),  # no surer than the threshold
    (1, 1, 0.9, (100, 100, 140, 140)),  # a cat in the dog's place
    (2, 2, 0.6, (70, 60, 215, 190)),  # reaches out of the image
    (2, 1, 0.7, (0, 0, 9, 9)),
    (2, -1, 0.7, (0, 0, 9, 9)),  # of a class that the data set does not have
)


@pytest.mark.parametrize(
    ("action", "kept", "moved"),
    [
        ("keep", [1, 1, 1, 1], [0, 0, 0, 0]),
        ("drop-object", [1, 0, 0, 1], [0, 0, 0, 0]),
        ("drop-image", [0, 0, 0, 1], [0, 0, 0, 0]),
        ("refine", [1, 1, 1, 1], [1, 0, 0, 1]),
    ],
)
def test_every_object_needs_a_detection_of_its_own_of_its_class(action, kept, moved):
    before = [dict(item) for item in LABELS]
    result = verify(LABELS, FOUND, VerificationOptions(action=action))
    assert result.found.tolist() == [True, False, False, True]
    assert result.kept.tolist() == [bool(k) for k in kept]
    assert unasked_counts(result, NAMES) == {"cat": 2}
    left = verified_annotations(LABELS, result, SIZES)
    expected = [dict(item) for item, k in zip(LABELS, kept, strict=True) if k]
    if any(moved):
        expected[0] |= {"bbox": [1, 0, 20, 20], "area": 400}
        expected[3] |= {"bbox": [70, 60, 130, 130], "area": 130 * 130}
    assert left == expected
    assert before == LABELS


def test_counts_are_by_class_by_cocos_size_and_by_attribute():
    result = verify(LABELS, FOUND, VerificationOptions(action="drop-object"))
    counts = verification_counts(LABELS, result, NAMES)

    def numbers(title):
        return {row[title].split()[0]: list(row.values())[1:] for row in counts[title]}

    # objects, found, kept, dropped, moved
    assert numbers("class") == {"cat": [2, 1, 1, 1, 0], "dog": [2, 1, 1, 1, 0]}
    assert numbers("size") == {
        "small": [2, 1, 1, 1, 0], "medium": [1, 0, 0, 1, 0], "large": [1, 1, 1, 0, 0],
    }  # fmt: skip
    assert numbers("attribute") == {"easy": [2, 2, 2, 0, 0], "hard": [2, 0, 0, 2, 0]}


def test_the_surest_detections_choose_first_as_in_a_loop():
    rng = np.random.default_rng(0)

    def boxes(count):
        corners = rng.uniform(0, 40, (count, 2)).round()
        return np.concatenate([corners, corners + rng.uniform(15, 40, (count, 2)).round()], axis=1)

    ids, found_ids = rng.integers(1, 9, (60, 2)) % 4 + 1, rng.integers(1, 9, (90, 2)) % 4 + 1
    labels = [label(*key.tolist(), box.tolist()) for key, box in zip(ids, boxes(60), strict=True)]
    rows = [
        (*key.tolist(), score, box)
        for key, score, box in zip(found_ids, rng.random(90), boxes(90), strict=True)
    ]
    free, found_with, unasked = dict(enumerate(labels)), {}, 0
    for image_id, category_id, score, box in sorted(rows, key=lambda row: -row[2]):
        if score <= 0.2:
            break
        overlaps = {
            k: iou(np.array([item["bbox"]]) + np.array([0, 0, *item["bbox"][:2]]), box[None]).item()
            for k, item in free.items()
            if (item["image_id"], item["category_id"]) == (image_id, category_id)
        }
        best = max(overlaps, key=overlaps.get, default=None)
        if best is not None and overlaps[best] > 0.4:
            found_with[best] = box.tolist()
            del free[best]
        else:
            unasked += 1
    options = VerificationOptions(iou_threshold=0.4, score_threshold=0.2)
    result = verify(labels, detections(*rows), options)
    assert np.flatnonzero(~result.found).tolist() == sorted(free)
    assert {k: result.found_boxes[k].tolist() for k in found_with} == found_with
    assert len(result.unasked) == unasked
