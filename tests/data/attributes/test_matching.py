from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from data.attributes import matching
from data.attributes.matching import class_groups, greedy, hungarian, match_best, match_one_to_one
from data.vocabulary.boxes import iou, xywh_to_xyxy, xyxy_to_xywh

SEEDS = st.integers(0, 2**32 - 1)


def draw(rng, count, num_groups, *, whole):
    """Boxes with many equal edges and IoUs if `whole`; some reach out of the image."""
    corners = rng.uniform(-2, 12, (count, 2, 2))
    corners = corners.round() if whole else corners
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    return boxes, rng.integers(-1, num_groups, count)


def brute_force(boxes, groups, found, found_groups):
    """The first detection of highest IoU in each box's group, one pair at a time."""
    best, detection = [], []
    for box, group in zip(boxes, groups, strict=True):
        top, winner = 0.0, -1
        for j, other in enumerate(found):
            overlap = float(iou(box[None], other[None])[0, 0])
            if found_groups[j] == group and overlap > top:
                top, winner = overlap, j
        best.append(top)
        detection.append(winner)
    return best, detection


@given(SEEDS, st.integers(0, 12), st.integers(0, 12), st.booleans(), st.booleans(), st.booleans())
def test_matching_equals_a_loop(seed, num_boxes, num_detections, whole, in_order, small_parts):
    rng = np.random.default_rng(seed)
    boxes, groups = draw(rng, num_boxes, 3, whole=whole)
    found, found_groups = draw(rng, num_detections, 3, whole=whole)
    if in_order:
        groups, found_groups = np.sort(groups), np.sort(found_groups)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_PAIRS_AT_ONCE", 3 if small_parts else 1000)
        matches = match_best(boxes, groups, found, found_groups, num_threads=2)
    best, detection = brute_force(boxes, groups, found, found_groups)
    assert matches.best_iou.tolist() == best
    assert matches.detection.tolist() == detection


@given(SEEDS, st.integers(0, 6))
def test_ious_are_those_of_pycocotools_to_the_last_bit(seed, decimals):
    """Also where the difference of two edges is not the side that the COCO file states."""
    rng = np.random.default_rng(seed)

    def coco_file(count):
        corners, sides = rng.uniform(0, 600, (count, 2)), rng.uniform(0.1, 200, (count, 2))
        return np.concatenate([corners, sides], axis=1).round(decimals)

    boxes_xywh = coco_file(9)
    boxes, found = xywh_to_xyxy(boxes_xywh), xywh_to_xyxy(coco_file(7)).astype(np.float32)
    found = found.astype(np.float64)
    found_xywh = xyxy_to_xywh(found)
    oracle = coco_mask.iou(found_xywh, boxes_xywh, [0] * 9).T
    assert iou(boxes, found).tolist() == oracle.tolist()
    matches = match_best(boxes, np.zeros(9, int), found, np.zeros(7, int))
    assert matches.best_iou.tolist() == oracle.max(axis=1).tolist()


@given(SEEDS, st.sampled_from([hungarian, greedy]))
def test_one_to_one_gives_no_detection_twice_and_none_at_the_threshold(seed, assign):
    rng = np.random.default_rng(seed)
    boxes, groups = draw(rng, 12, 2, whole=True)
    found, found_groups = draw(rng, 10, 2, whole=True)
    matches = match_one_to_one(
        boxes, groups, found, found_groups, assign=assign, iou_threshold=0.25
    )
    given_away = matches.detection[matches.detection >= 0]
    assert len(set(given_away.tolist())) == len(given_away)
    for i in np.flatnonzero(matches.detection >= 0):
        j = matches.detection[i]
        assert groups[i] == found_groups[j]
        assert matches.best_iou[i] == iou(boxes[i : i + 1], found[j : j + 1])[0, 0] > 0.25


@given(SEEDS, st.integers(1, 4), st.integers(1, 5))
def test_hungarian_pairs_have_the_highest_sum(seed, num_boxes, num_detections):
    overlaps = np.random.default_rng(seed).random((num_boxes, num_detections))
    overlaps[overlaps < 0.3] = 0
    size = max(overlaps.shape)
    square = np.zeros((size, size))
    square[:num_boxes, :num_detections] = overlaps
    highest = max(square[range(size), list(order)].sum() for order in permutations(range(size)))
    assert overlaps[hungarian(overlaps)].sum() == pytest.approx(highest)


def test_greedy_lets_the_better_score_choose_first():
    overlaps = np.array([[0.6, 0.9], [0.55, 0.0]])
    assert [part.tolist() for part in greedy(overlaps)] == [[0], [0]]
    assert [part.tolist() for part in hungarian(overlaps)] == [[0, 1], [1, 0]]


def test_classes_of_an_image_are_groups():
    groups, found = class_groups(
        np.array([5, 5, 6]), np.array([1, 2, 1]), np.array([6, 5, 7]), np.array([1, 2, 1])
    )
    assert (groups[:, None] == found[None]).tolist() == [
        [False, False, False],
        [False, True, False],
        [True, False, False],
    ]
