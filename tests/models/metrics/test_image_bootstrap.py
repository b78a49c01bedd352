import contextlib
import copy
import io
import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.metrics.image_bootstrap import (
    bootstrap_difference,
    bootstrap_map,
    difference_p_value,
    match_detections,
    weighted_map,
)
from models.metrics.interval import Interval

NUM_IMAGES = 12
IMAGE_IDS = list(range(3, 3 + NUM_IMAGES))


def difference(of, versus, num_draws=1000, seed=0):
    return bootstrap_difference(
        *(bootstrap_map(item, None, num_draws, seed) for item in (of, versus))
    )


def random_boxes(rng):
    """Boxes of 3 classes, some crowds among them; class 4 has none."""
    boxes = []
    for image_id in IMAGE_IDS:
        for _ in range(rng.integers(0, 6)):
            x, y, width, height = (*rng.uniform(0, 60, 2), *rng.uniform(5, 60, 2))
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.integers(1, 4)),
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
    return boxes


@cache
def random_truth(seed=0):
    return {
        "images": [{"id": image_id} for image_id in IMAGE_IDS],
        "annotations": random_boxes(np.random.default_rng(seed)),
        "categories": [{"id": label} for label in (1, 2, 3, 4)],
    }


@cache
def random_detections(seed=1, decimals=9):
    rng = np.random.default_rng(seed)
    found = []
    for box in random_truth()["annotations"] * 3:
        label = box["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 5))
        found.append(
            {
                "image_id": box["image_id"],
                "category_id": label,
                "bbox": (np.array(box["bbox"]) + rng.normal(0, 1.5, 4)).tolist(),
                "score": round(rng.random(), decimals),
            }
        )
    return found


def oracle_map(truth, detections, image_ids=None):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        oracle = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        if image_ids:
            oracle.params.imgIds = image_ids
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    return oracle.stats[0]


@pytest.mark.parametrize("decimals", [9, 1])  # without and with equal scores
@pytest.mark.parametrize("image_ids", [IMAGE_IDS, [9, 4, 3, 11]])
@pytest.mark.parametrize("seed", [1, 2])
def test_unweighted_equals_pycocotools(seed, image_ids, decimals):
    detections = random_detections(seed, decimals)
    matched = match_detections(random_truth(), detections, image_ids)
    oracle = oracle_map(random_truth(), detections, image_ids)
    assert weighted_map(matched, np.ones(len(image_ids))) == pytest.approx(oracle, abs=1e-9)
    assert 0.05 < oracle < 0.95


def test_only_the_hundred_best_of_an_image_and_class_count():
    truth = random_truth()
    sure = {"image_id": IMAGE_IDS[0], "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1.0}
    detections = random_detections() + [sure] * 98
    matched = match_detections(truth, detections, IMAGE_IDS)
    found = weighted_map(matched, np.ones(NUM_IMAGES))
    assert found == pytest.approx(oracle_map(truth, detections), abs=1e-9)
    assert max(np.bincount(matched.classes[1].image)) == 100


def repeated(rows, weights):
    """Rows of every image `weights` times, the copies with ids of their own."""
    copies = [
        {**row, "image_id": 1000 * (number + 1) + row["image_id"]}
        for row in rows
        for number in range(weights[IMAGE_IDS.index(row["image_id"])])
    ]
    return [{**row, "id": number} for number, row in enumerate(copies, start=1)]


@pytest.mark.parametrize("seed", range(4))
def test_whole_weights_equal_repeated_images(seed):
    truth, detections = random_truth(), random_detections()
    weights = np.random.default_rng(seed).integers(0, 4, NUM_IMAGES)
    boxes = repeated(truth["annotations"], weights)
    images = repeated([{"image_id": image_id} for image_id in IMAGE_IDS], weights)
    larger = truth | {"annotations": boxes, "images": [{"id": row["image_id"]} for row in images]}
    oracle = oracle_map(larger, repeated(detections, weights))
    matched = match_detections(truth, detections, IMAGE_IDS)
    assert weighted_map(matched, weights.astype(float)) == pytest.approx(oracle, abs=1e-9)
    assert oracle != pytest.approx(weighted_map(matched, np.ones(NUM_IMAGES)), abs=1e-3)


@given(st.lists(st.integers(0, 5), min_size=NUM_IMAGES, max_size=NUM_IMAGES), st.integers(2, 9))
def test_all_images_equally_more_often_change_nothing(weights, factor):
    weights = np.array(weights, dtype=float)
    matched = all_matched()
    found = weighted_map(matched, weights)
    assert weighted_map(matched, weights * factor) == pytest.approx(found, abs=1e-9)
    assert found == -1 or 0 <= found <= 1


@cache
def all_matched(seed=1):
    return match_detections(random_truth(), random_detections(seed), IMAGE_IDS)


def test_inputs_are_not_changed():
    truth, detections = random_truth(seed=7), random_detections(seed=7)
    before = copy.deepcopy((truth, detections))
    match_detections(truth, detections, IMAGE_IDS)
    assert (truth, detections) == before


def test_a_box_is_found_once():
    boxes = [[0.0, 0.0, 9.0, 9.0], [50.0, 50.0, 9.0, 9.0]]
    rows = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    annotations = [{**row, "id": i, "area": 81.0, "iscrowd": 0} for i, row in enumerate(rows, 1)]
    truth = {"images": [{"id": 1}], "annotations": annotations, "categories": [{"id": 1}]}
    scores = [(0, 0.9), (0, 0.8), (1, 0.7)]  # right, again, right
    found = match_detections(truth, [{**rows[i], "score": score} for i, score in scores], [1])
    assert weighted_map(found, np.ones(1)) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_nothing_is_printed(capsys):
    match_detections(random_truth(), random_detections(), IMAGE_IDS)
    assert capsys.readouterr().out == ""


def test_images_without_a_box_have_no_map():
    matched = match_detections(random_truth() | {"annotations": []}, random_detections(), IMAGE_IDS)
    assert weighted_map(matched, np.ones(NUM_IMAGES)) == -1
    with pytest.raises(ValueError, match="the same boxes"):
        difference(matched, matched)


def test_no_image_is_not_all_images():
    with pytest.raises(ValueError, match="needs an image"):
        match_detections(random_truth(), random_detections(), [])


def shifted(rows):
    return [{**row, "image_id": row["image_id"] + 100} for row in rows]


@pytest.mark.parametrize("change", ["fewer images", "fewer boxes", "other images"])
def test_other_boxes_are_no_pair(change):
    truth, image_ids = random_truth(), IMAGE_IDS
    boxes = truth["annotations"]
    if change == "fewer images":
        image_ids = IMAGE_IDS[1:]
    elif change == "fewer boxes":
        truth = truth | {"annotations": [box for box in boxes if box["id"] != 5]}
    else:
        image_ids = [image_id + 100 for image_id in IMAGE_IDS]
        images = [{"id": image_id} for image_id in image_ids]
        truth = truth | {"annotations": shifted(boxes), "images": images}
    with pytest.raises(ValueError, match="the same boxes"):
        difference(all_matched(), match_detections(truth, [], image_ids), 2)


def share_found(found):
    """A box in every image, one class; detected for certain and in place where `found` says so."""
    images = range(len(found))
    place = {"category_id": 1, "bbox": [5.0, 5.0, 9.0, 9.0]}
    box = {**place, "area": 81.0, "iscrowd": 0}
    truth = {
        "images": [{"id": image} for image in images],
        "annotations": [{**box, "id": image + 1, "image_id": image} for image in images],
        "categories": [{"id": 1}],
    }
    detections = [{**place, "image_id": i, "score": 0.5} for i in images if found[i]]
    return match_detections(truth, detections, images)


def closed_form(found):
    """Precision is 1 at the recalls up to the share found, of 101, and 0 beyond it."""
    return (math.floor(100 * found.mean()) + 1) / 101


TENS = np.arange(103) % 10
"""Its shares lie on no recall that COCO reads, where rounding would decide."""


def test_interval_of_a_share_is_binomial():
    found = TENS < 3
    interval = difference(share_found(found), share_found(TENS < 0), 600)
    assert interval.value == pytest.approx(closed_form(found))
    error = found.std() / math.sqrt(len(found)) * 100 / 101
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_images_that_belong_together_are_drawn_together():
    """As many boxes found in each film: the interval is that of a share of films, not of frames."""
    films = 10
    found = np.repeat(TENS[:103] < 3, films)
    groups = {image: image // films for image in range(len(found))}
    of, versus = (
        bootstrap_map(share_found(items), groups, 600) for items in (found, np.zeros_like(found))
    )
    together = bootstrap_difference(of, versus)
    apart = difference(share_found(found), share_found(np.zeros_like(found)), 600)
    assert together.value == apart.value
    error = found.std() / math.sqrt(len(found) / films) * 100 / 101
    assert together.high - together.low == pytest.approx(2 * 1.96 * error, rel=0.12)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)
    one = bootstrap_map(share_found(found), dict.fromkeys(groups, 7), 20)
    assert set(one.draws) == {one.value}


def test_the_p_value_of_a_difference_agrees_with_its_interval():
    less, more, same = (bootstrap_map(share_found(n > TENS), num_draws=400) for n in (3, 6, 3))
    assert difference_p_value(more, less) == pytest.approx(2 / 401)
    assert difference_p_value(less, more) == pytest.approx(2 / 401)
    assert difference_p_value(less, same) == 1


def test_the_same_images_are_drawn_for_both():
    # One detector finds a fifth more: only these images can change the difference.
    less, more = TENS < 3, TENS < 5
    interval = difference(share_found(more), share_found(less), 600)
    assert interval.value == pytest.approx(closed_form(more) - closed_form(less))
    error = (more & ~less).std() / math.sqrt(len(less)) * 100 / 101
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_a_detector_does_not_differ_from_itself():
    assert difference(all_matched(), all_matched(), 20) == Interval(0.0, 0.0, 0.0)


def test_difference_changes_sign_with_its_order():
    one, other = all_matched(1), all_matched(2)
    one_less_other = difference(one, other, 100)
    mirrored = difference(other, one, 100)
    assert mirrored.value == -one_less_other.value
    assert one_less_other.low < one_less_other.value < one_less_other.high
    assert (mirrored.low, mirrored.high) == pytest.approx(
        (-one_less_other.high, -one_less_other.low), abs=0.01
    )


def test_equal_seeds_draw_equal_images():
    one, other = all_matched(1), all_matched(2)
    first, again, third = (difference(one, other, 50, seed) for seed in (5, 5, 6))
    assert first == again != third
