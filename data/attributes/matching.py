"""Which detection belongs to which labelled box, for all images of a data set at once.

Boxes and detections meet within a group only: an image, or a class of an image (`class_groups`).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int, Int32, UInt32
from scipy.optimize import linear_sum_assignment

from data.vocabulary.boxes import iou, iou_xywh, xyxy_to_coco, xyxy_to_xywh

_PAIRS_AT_ONCE = 1 << 19
"""So many pairs of a box and a detection are worked on in the processor's cache."""

_FIELD_BITS = 8
_MAX_FIELD = (1 << 7) - 1
_GUARDS = np.uint32(0x80_80_80_80)
"""The top bit of each of four 8-bit fields."""


Assign = Callable[[Float[np.ndarray, "boxes detections"]], tuple[np.ndarray, np.ndarray]]
"""Chooses pairs one to one from IoUs, 0 where a pair is not allowed: their rows and columns."""


@dataclass(frozen=True, slots=True)
class Matches:
    """The detection of every ground-truth box.

    Attributes:
        best_iou: IoU with it, float64 (num_boxes,); 0 where there is none.
        detection: index of that detection, -1 where there is none.
    """

    best_iou: Float[np.ndarray, " boxes"]
    detection: Int[np.ndarray, " boxes"]


def match_best(
    boxes: Float[np.ndarray, "boxes 4"],
    groups: Int[np.ndarray, " boxes"],
    detected_boxes: Float[np.ndarray, "detections 4"],
    detected_groups: Int[np.ndarray, " detections"],
    *,
    num_threads: int = 1,
) -> Matches:
    """Find each box's detection of highest IoU; one detection may serve many boxes.

    Of equal IoUs the first detection wins. Fastest where both are ordered by group.

    >>> boxes = np.array([[0.0, 0, 2, 2]])
    >>> match_best(boxes, np.array([7]), boxes + 1, np.array([7])).best_iou
    array([0.14285714])
    """
    if len(boxes) == 0 or len(detected_boxes) == 0:
        return Matches(np.zeros(len(boxes)), np.full(len(boxes), -1))
    rows, found_rows = _by_group(groups), _by_group(detected_groups)
    boxes, found = np.asfortranarray(boxes[rows]), np.asfortranarray(detected_boxes[found_rows])
    first, counts = _ranges(groups[rows], detected_groups[found_rows])
    scale = _MAX_FIELD / max(boxes.max(), found.max(), 1.0)
    best, detection = np.empty(len(boxes)), np.empty(len(boxes), np.int64)

    def match(part: tuple[int, int]) -> None:
        here = slice(*part)
        low, high = first[here].min(), (first[here] + counts[here]).max()
        best[here], winner = _match_part(
            boxes[here], found[low:high], first[here] - low, counts[here], scale
        )
        detection[here] = np.where(winner >= 0, winner + low, -1)

    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(match, _parts(counts)))
    if isinstance(found_rows, np.ndarray):
        detection = np.append(found_rows, -1)[detection]
    if isinstance(rows, np.ndarray):
        best[rows], detection[rows] = best.copy(), detection.copy()
    return Matches(best, detection)


def match_one_to_one(
    boxes: Float[np.ndarray, "boxes 4"],
    groups: Int[np.ndarray, " boxes"],
    detected_boxes: Float[np.ndarray, "detections 4"],
    detected_groups: Int[np.ndarray, " detections"],
    *,
    assign: Assign,
    iou_threshold: float,
) -> Matches:
    """Give each box a detection of its own among those with IoU > `iou_threshold` with it.

    Args:
        assign: `hungarian`, or `greedy`, which needs the detections by descending score.
    """
    matches = Matches(np.zeros(len(boxes)), np.full(len(boxes), -1))
    rows = np.argsort(groups, kind="stable")
    found_rows = np.argsort(detected_groups, kind="stable")
    keys, starts = np.unique(groups[rows], return_index=True)
    firsts = np.searchsorted(detected_groups[found_rows], keys, side="left")
    lasts = np.searchsorted(detected_groups[found_rows], keys, side="right")
    for mine, first, last in zip(np.split(rows, starts[1:]), firsts, lasts, strict=True):
        found = found_rows[first:last]
        overlaps = iou(boxes[mine], detected_boxes[found])
        i, j = assign(np.where(overlaps > iou_threshold, overlaps, 0.0))
        matches.best_iou[mine[i]] = overlaps[i, j]
        matches.detection[mine[i]] = found[j]
    return matches


def hungarian(overlaps: Float[np.ndarray, "boxes detections"]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, one to one, of the highest sum of IoUs."""
    i, j = linear_sum_assignment(overlaps, maximize=True)
    allowed = overlaps[i, j] > 0
    return i[allowed], j[allowed]


def greedy(overlaps: Float[np.ndarray, "boxes detections"]) -> tuple[np.ndarray, np.ndarray]:
    """Pairs, one to one: each detection in turn takes the free box of highest IoU, as in COCO's AP."""
    free = overlaps.copy()
    pairs = []
    for j in range(free.shape[1]):
        i = int(free[:, j].argmax())
        if free[i, j] > 0:
            pairs.append((i, j))
            free[i] = 0
    chosen = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return chosen[:, 0], chosen[:, 1]


def class_groups(
    image_ids: Int[np.ndarray, " boxes"],
    category_ids: Int[np.ndarray, " boxes"],
    detected_image_ids: Int[np.ndarray, " detections"],
    detected_category_ids: Int[np.ndarray, " detections"],
) -> tuple[Int[np.ndarray, " boxes"], Int[np.ndarray, " detections"]]:
    """Number the (image, class) pairs of boxes and of detections, equal pairs by equal numbers."""
    _, images = np.unique(np.concatenate([image_ids, detected_image_ids]), return_inverse=True)
    classes, labels = np.unique(
        np.concatenate([category_ids, detected_category_ids]), return_inverse=True
    )
    groups = images * len(classes) + labels
    return groups[: len(image_ids)], groups[len(image_ids) :]


def _by_group(groups: Int[np.ndarray, " rows"]) -> slice | Int[np.ndarray, " rows"]:
    """Row numbers by group; everything as it stands where it is in order."""
    if (groups[1:] >= groups[:-1]).all():
        return slice(None)
    return np.argsort(groups, kind="stable")


def _take(
    boxes: Float[np.ndarray, "boxes 4"], rows: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows 4"]:
    """Rows of boxes whose edges are contiguous in memory, as those of the result are."""
    return boxes.T.take(rows, axis=1).T


def _match_part(
    boxes: Float[np.ndarray, "boxes 4"],
    found: Float[np.ndarray, "detections 4"],
    first: Int[np.ndarray, " boxes"],
    counts: Int[np.ndarray, " boxes"],
    scale: float,
) -> tuple[Float[np.ndarray, " boxes"], Int[np.ndarray, " boxes"]]:
    """Best IoU and its detection of boxes whose detections stand from `first` on, `counts` of them."""
    best, detection = np.zeros(len(boxes)), np.full(len(boxes), -1)
    box, candidate = _close_pairs(boxes, found, first, counts, scale)
    boxes_xywh, found_xywh = xyxy_to_coco(boxes), xyxy_to_xywh(found)
    overlaps = iou_xywh(_take(boxes_xywh, box), _take(found_xywh, candidate))
    np.maximum.at(best, box, overlaps)
    winners = np.flatnonzero((overlaps == best.take(box)) & (overlaps > 0))[::-1]
    detection[box[winners]] = candidate[winners]  # backwards, so that the first one stays
    return best, detection


def _close_pairs(
    boxes: Float[np.ndarray, "boxes 4"],
    found: Float[np.ndarray, "detections 4"],
    first: Int[np.ndarray, " boxes"],
    counts: Int[np.ndarray, " boxes"],
    scale: float,
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """All pairs of one group whose boxes touch, and a few that nearly do, in order of detections.

    Most pairs of an image do not overlap. Comparing edges as integers, the four comparisons of a pair
    in one subtraction, throws them away at a fraction of an IoU's price. All boxes look at the first
    detection of their group at once, then those that have a second one at that, …
    """
    most = counts.max()
    fewer = (most - counts).astype(np.min_scalar_type(most))  # short integers sort fast
    order = np.argsort(fewer, kind="stable")
    ends = np.searchsorted(fewer[order], most - np.arange(most))
    offsets = np.append(0, np.cumsum(ends))
    candidates = first[order]
    limits, reaches = _pack_limits(boxes, scale)[order], _pack_reaches(found, scale)
    room = np.empty(offsets[-1], np.uint32)
    for j, end in enumerate(ends):
        here = room[offsets[j] : offsets[j + 1]]
        reaches[j:].take(candidates[:end], out=here, mode="clip")
        here -= limits[:end]
    room &= _GUARDS
    close = np.flatnonzero(room == _GUARDS)
    steps = np.repeat(np.arange(len(ends)), np.diff(np.searchsorted(close, offsets)))
    rows = close - offsets[steps]
    return order[rows], candidates[rows] + steps


def _parts(counts: Int[np.ndarray, " boxes"]) -> Iterator[tuple[int, int]]:
    """Cut the boxes where they have made up `_PAIRS_AT_ONCE` pairs."""
    ends = np.cumsum(counts)
    cuts = np.unique(np.searchsorted(ends, np.arange(0, ends[-1], _PAIRS_AT_ONCE), side="right"))
    edges = [0, *cuts[cuts > 0].tolist(), len(counts)]
    return ((start, stop) for start, stop in pairwise(edges) if stop > start)


def _ranges(
    groups: Int[np.ndarray, " boxes"], found_groups: Int[np.ndarray, " detections"]
) -> tuple[Int[np.ndarray, " boxes"], Int[np.ndarray, " boxes"]]:
    """For each box the first detection of its group and their number; both ordered by group."""
    begins = np.append(True, groups[1:] != groups[:-1])
    keys, group = groups[begins], np.cumsum(begins, dtype=np.int32) - 1
    first = np.searchsorted(found_groups, keys, side="left")
    last = np.searchsorted(found_groups, keys, side="right")
    return first.take(group), (last - first).take(group)


# A pair touches if det.right >= box.left, box.right >= det.left, and the same from top to bottom:
# four comparisons reach >= limit, where edges on the far side count from the far end. Rounding down
# keeps their order, so no pair that touches is lost. A field's guard bit is set in the reach; if it
# survives the subtraction of the limit, nothing was borrowed from it: the comparison holds.


def _pack_reaches(boxes: Float[np.ndarray, "n 4"], scale: float) -> UInt32[np.ndarray, " n"]:
    left, top, right, bottom = _scaled(boxes, scale)
    return _pack(right, _MAX_FIELD - left, bottom, _MAX_FIELD - top) | _GUARDS


def _pack_limits(boxes: Float[np.ndarray, "n 4"], scale: float) -> UInt32[np.ndarray, " n"]:
    left, top, right, bottom = _scaled(boxes, scale)
    return _pack(left, _MAX_FIELD - right, top, _MAX_FIELD - bottom)


def _scaled(boxes: Float[np.ndarray, "n 4"], scale: float) -> Int32[np.ndarray, "4 n"]:
    """Edges as integers of 7 bits; what lies left of or above the image counts as its edge."""
    edges = boxes.T * scale
    return np.maximum(edges, 0, out=edges).astype(np.int32)


def _pack(*fields: Int32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Four integers of 7 bits in one."""
    packed = fields[0]
    for field in fields[1:]:
        packed = (packed << _FIELD_BITS) + field
    return packed.view(np.uint32)
