"""COCO's average precisions of weighted images: how sure they, and a difference of mAP, are over the images.

Which detection meets which box does not depend on the other images. It is found once; a draw of images
only changes how often each of them counts.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.metrics.comparison import percentile_interval
from models.metrics.interval import Interval

_IOUS = np.linspace(0.5, 0.95, 10)
"""Those that COCO's mAP is the mean of."""

_RECALLS = np.linspace(0, 1, 101)
"""Where COCO reads the curve of precision over recall."""


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """Detections of one class, by descending score, equal ones in pycocotools' order.

    Attributes:
        image: index of the image.
        score: confidence.
        matched: whether a box is its own at each IoU threshold.
        ignored: whether it does not count there, since its box is a crowd.
        num_truths: boxes of the class by image, without crowds.
    """

    image: Int[np.ndarray, " detections"]
    score: Float[np.ndarray, " detections"]
    matched: Bool[np.ndarray, "detections ious"]
    ignored: Bool[np.ndarray, "detections ious"]
    num_truths: Int[np.ndarray, " images"]


@dataclass(frozen=True, slots=True)
class MatchedDetections:
    """What detections have found, at most the 100 best of an image and class.

    Attributes:
        image_ids: ascending; an image's index is its place here.
        classes: category id to its detections, only those with a box or a detection.
    """

    image_ids: Int[np.ndarray, " images"]
    classes: Mapping[int, ClassMatches]


def match_detections(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int],
) -> MatchedDetections:
    """Match detections with boxes as pycocotools does.

    Args:
        truth: COCO data set: images, annotations, categories. Not changed.
        detections: COCO results: image_id, category_id, bbox (xywh), score. Not changed.
        image_ids: look at these images alone; their order is no matter.

    Raises:
        ValueError: no image is given; to pycocotools that would mean all.
    """
    if len(image_ids) == 0:
        raise ValueError("a bootstrap over images needs an image")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_truth(truth), _found(truth, detections), "bbox")
        evaluation.params.imgIds = list(image_ids)
        evaluation.params.iouThrs = _IOUS
        evaluation.params.areaRng = evaluation.params.areaRng[:1]  # 'all'; the others take time
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    known_ids = np.unique(image_ids)
    by_class: dict[int, list[dict[str, Any]]] = {}
    for result in filter(None, evaluation.evalImgs):
        by_class.setdefault(result["category_id"], []).append(result)
    classes = {label: _join(results, known_ids) for label, results in by_class.items()}
    return MatchedDetections(known_ids, classes)


def weighted_map(matched: MatchedDetections, weights: Float[np.ndarray, " images"]) -> float:
    """COCO's mAP, the mean of `weighted_precisions` over IoU 0.50:0.95; -1 where there is no box."""
    return float(weighted_precisions(matched, weights).mean())


def weighted_precisions(
    matched: MatchedDetections, weights: Float[np.ndarray, " images"]
) -> Float[np.ndarray, " ious"]:
    """COCO's AP at each of its ten IoU thresholds with every image counted `weights[i]` times.

    With weights of 1 it is pycocotools' own. With whole numbers it is that of a data set with images
    repeated so often, unless two detections of one image and class have equal scores: their copies
    would mix there, and stay together here. Fractions round, and may miss one of the 101 recalls by
    that. Classes without a box in the images that count are left out; -1 if all are, as in COCO.
    """
    precisions = [
        _average_precisions(matches, weights)
        for matches in matched.classes.values()
        if matches.num_truths @ weights > 0
    ]
    return np.mean(precisions, axis=0) if precisions else np.full(len(_IOUS), -1.0)


@dataclass(frozen=True, slots=True)
class MapDraws:
    """mAP of one detector in draws of the images.

    Attributes:
        matched: what it has found.
        value: mAP of the images as they are.
        draws: of images drawn with replacement; the same images for every detector.
    """

    matched: MatchedDetections
    value: float
    draws: Float[np.ndarray, " draws"]


def bootstrap_map(
    matched: MatchedDetections,
    groups: Mapping[int, int] | None = None,
    num_draws: int = 1000,
    seed: int = 0,
) -> MapDraws:
    """Draw images with replacement, and find a detector's mAP in each draw (Efron, 1979).

    Args:
        groups: image id to what it belongs to, which is drawn as a whole; those without are for themselves.
    """
    image_ids = matched.image_ids.tolist()
    names = [(groups or {}).get(image_id, image_id) for image_id in image_ids]
    group_ids, place = np.unique(names, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = [weighted_map(matched, _draw(len(group_ids), rng)[place]) for _ in range(num_draws)]
    return MapDraws(matched, weighted_map(matched, np.ones(len(image_ids))), np.array(draws))


def bootstrap_difference(of: MapDraws, versus: MapDraws) -> Interval:
    """Difference of mAP, `of - versus`, with its 95 % percentile interval over the images.

    It says how far other images would change the difference of these two detectors, not how far
    other seeds would.

    Raises:
        ValueError: the two were not matched with the same boxes, or there is none.
    """
    _check_same_boxes(of.matched, versus.matched)
    return percentile_interval(of.value - versus.value, of.draws - versus.draws)


def difference_p_value(of: MapDraws, versus: MapDraws) -> float:
    """Two-sided p value of a difference of mAP: twice the share of draws on the other side of zero.

    Of n draws none below 2 / (n + 1) (Davison and Hinkley, 1997, chapter 4).

    Raises:
        ValueError: the two were not matched with the same boxes, or there is none.
    """
    _check_same_boxes(of.matched, versus.matched)
    differences = of.draws - versus.draws
    beyond = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(2 * (beyond + 1) / (len(differences) + 1), 1.0)


def _draw(count: int, rng: np.random.Generator) -> Float[np.ndarray, " count"]:
    """How often each of so many is drawn when as many are drawn as there are."""
    drawn = rng.integers(count, size=count)
    return np.bincount(drawn, minlength=count).astype(np.float64)


def _average_precisions(
    matches: ClassMatches, weights: Float[np.ndarray, " images"]
) -> Float[np.ndarray, " ious"]:
    """Mean over recalls of the interpolated precision of a class that has boxes, at each IoU threshold.

    The steps of `COCOeval.accumulate` (Lin et al., 2014), where a detection counts for its weight.
    """
    counted = np.where(matches.ignored.T, 0, weights[matches.image])
    hits = np.cumsum(counted * matches.matched.T, axis=1)
    recall = hits / (matches.num_truths @ weights)
    precision = hits / (np.cumsum(counted, axis=1) + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.pad(best_from_here, ((0, 0), (0, 1)))  # a recall never reached has precision 0
    read = [row[np.searchsorted(of, _RECALLS)] for row, of in zip(reached, recall, strict=True)]
    return np.mean(read, axis=1)


def _truth(truth: Mapping[str, Any]) -> COCO:
    """The boxes; copied, since pycocotools writes into annotations."""
    return _coco(truth, [dict(annotation) for annotation in truth["annotations"]])


def _found(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> COCO:
    """What `loadRes` makes of detections, but none are allowed."""
    annotations = [
        {**found, "id": number, "area": found["bbox"][2] * found["bbox"][3], "iscrowd": 0}
        for number, found in enumerate(detections, start=1)
    ]
    return _coco(truth, annotations)


def _coco(truth: Mapping[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**truth, "annotations": annotations}
    coco.createIndex()
    return coco


def _join(results: list[dict[str, Any]], image_ids: Int[np.ndarray, " images"]) -> ClassMatches:
    """Put together the results of one class, given by ascending image id."""
    index = np.searchsorted(image_ids, [result["image_id"] for result in results])
    counts = [len(result["dtScores"]) for result in results]
    score = np.concatenate([np.asarray(result["dtScores"], np.float64) for result in results])
    order = np.argsort(-score, kind="stable")
    num_truths = np.zeros(len(image_ids), np.int64)
    num_truths[index] = [np.count_nonzero(result["gtIgnore"] == 0) for result in results]
    matched, ignored = (
        np.concatenate([result[name] for result in results], axis=1)
        .astype(bool)
        .take(order, axis=1)
        .T
        for name in ("dtMatches", "dtIgnore")
    )
    return ClassMatches(np.repeat(index, counts)[order], score[order], matched, ignored, num_truths)


def _check_same_boxes(of: MatchedDetections, versus: MatchedDetections) -> None:
    truths, other_truths = (
        {
            label: matches.num_truths.tolist()
            for label, matches in matched.classes.items()
            if matches.num_truths.any()
        }
        for matched in (of, versus)
    )
    if not truths or truths != other_truths or of.image_ids.tolist() != versus.image_ids.tolist():
        raise ValueError("a difference needs two detectors on the same boxes of the same images")
