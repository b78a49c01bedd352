"""From the annotations of a COCO file to checked rows of the table `objects`, chunk by chunk."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import msgspec
import numpy as np
import pyarrow as pa

from data.coco.files import NULL, CocoAnnotation
from data.coco.records import Offence, SpanJob
from data.ingest.image_checks import AcceptedImages
from data.ingest.options import MaskMode
from data.ingest.turning import turn_boxes, turn_mask
from data.vocabulary.boxes import area as box_area
from data.vocabulary.boxes import xywh_to_xyxy
from data.vocabulary.masks import EncodedMasks, encode_segmentations
from data.vocabulary.splits import Split
from data.vocabulary.tables import BOX_COLUMNS, OBJECTS

BOX_OUTSIDE = "box outside the image"
BOX_CLIPPED = "box reaches out of the image (clipped)"
"""Reasons, of which many may mean that boxes are in another form."""

_OVERHANG = 1.0
"""Pixels that a box may reach out of its image by rounding; it is clipped without remark."""

_AREA_TOLERANCE = 0.2
"""Share of the mask; COCO measures polygons exactly, masks have whole pixels along the outline."""


@dataclass(frozen=True, slots=True)
class AnnotationContext:
    """What an annotation is checked against.

    Attributes:
        split: of the data set.
        is_thing: whether the file holds things.
        images: that were accepted.
        category_ids: of the file, int64 (num_categories,).
        masks: whether masks are encoded.
    """

    split: Split
    is_thing: bool
    images: AcceptedImages
    category_ids: np.ndarray
    masks: MaskMode


@dataclass(frozen=True, slots=True)
class ObjectRows:
    """Rows of `objects` in the file's order, and what was left out or mended."""

    batch: pa.RecordBatch
    offences: list[Offence]


def object_rows(context: AnnotationContext, job: SpanJob) -> ObjectRows:
    """Read, check and encode the annotations of one span; ids are not yet known to be unique.

    Raises:
        UnprovenIndex: the span does not hold well-formed records and `job.salvage` is off.
        InvalidDataset: the span is not JSON.
    """
    records, malformed = job.decode(CocoAnnotation)
    return checked_rows(context, records, lambda row: str(records[row].id), malformed)


def checked_rows(
    context: AnnotationContext,
    records: list[CocoAnnotation],
    name: Callable[[int], str],
    malformed: list[Offence],
) -> ObjectRows:
    """Check and encode annotations.

    Args:
        name: what the record of an index is called in the account of refusals.
        malformed: refused before.
    """
    ids = _column(records, "id", np.int64)
    image_ids = _column(records, "image_id", np.int64)
    category_ids = _column(records, "category_id", np.int64)
    boxes_xywh = _boxes_xywh(records)
    sizes, known = image_sizes(context.images, image_ids)
    boxes, overhang = _clipped(boxes_xywh, sizes)
    refused = _first_reason(
        {
            "unknown category": ~np.isin(category_ids, context.category_ids),
            "unknown or refused image": ~known,
            "box is not finite": ~np.isfinite(boxes_xywh).all(axis=1),
            "box without area": np.any(boxes_xywh[:, 2:] <= 0, axis=1),
            BOX_OUTSIDE: np.any(boxes[:, 2:] <= boxes[:, :2], axis=1),
        }
    )
    kept: slice | np.ndarray = slice(None)
    numbers, items = np.arange(len(records)), records
    if any(map(len, refused.values())):
        kept = numbers = np.delete(numbers, np.concatenate(list(refused.values())))
        items = [records[row] for row in kept]
    ids, boxes = ids[kept], boxes[kept]
    crowds = _column(items, "iscrowd", np.bool_)
    masks = _masks(context.masks, items, sizes[kept])
    areas, other_areas = _areas(items, boxes, crowds, masks)
    boxes, counts = _as_shown(context.images, image_ids[kept], boxes, masks.counts)
    mended: dict[str, Iterable[int]] = {
        BOX_CLIPPED: np.flatnonzero(overhang[kept] > _OVERHANG),
        "broken mask (box kept)": masks.broken,
        **other_areas,
    }
    offences = [
        *malformed,
        *((reason, name(row)) for reason, rows in refused.items() for row in rows),
        *((reason, name(numbers[row])) for reason, rows in mended.items() for row in rows),
    ]
    columns = [
        pa.repeat(context.split, len(items)),
        ids,
        image_ids[kept],
        category_ids[kept],
        pa.repeat(context.is_thing, len(items)),
        crowds,
        *(boxes[:, edge] for edge in range(len(BOX_COLUMNS))),
        areas,
        pa.array(counts, pa.string()),
        _texts([item.difficulty for item in items]),
    ]
    arrays = [pa.array(column) for column in columns]
    return ObjectRows(
        pa.RecordBatch.from_arrays(arrays, schema=OBJECTS),
        [(reason, f"{context.split}/{name}") for reason, name in offences],
    )


def _column(records: list[CocoAnnotation], name: str, kind: type[np.generic]) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), records), kind, len(records))


def _boxes_xywh(records: list[CocoAnnotation]) -> np.ndarray:
    """Boxes (num_records, 4) whose columns are contiguous in memory, as all that follows are."""
    flat = chain.from_iterable(map(attrgetter("bbox"), records))
    rows = np.fromiter(flat, np.float64, 4 * len(records)).reshape(-1, 4)
    return np.asfortranarray(rows)


def _first_reason(reasons: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows by the first reason that applies to them."""
    rows: dict[str, np.ndarray] = {}
    earlier: np.ndarray = np.zeros(len(next(iter(reasons.values()))), bool)
    for reason, applies in reasons.items():
        rows[reason] = np.flatnonzero(applies & ~earlier)
        earlier = earlier | applies
    return rows


def image_sizes(images: AcceptedImages, image_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Height and width of each annotation's image, ones where it is unknown; whether it is known."""
    if not len(images.ids):
        return np.ones((len(image_ids), 2), np.int32), np.zeros(len(image_ids), bool)
    rows = _image_rows(images, image_ids)
    known = images.ids[rows] == image_ids
    return np.where(known, images.sizes.T.take(rows, axis=1), 1).T, known


def _image_rows(images: AcceptedImages, image_ids: np.ndarray) -> np.ndarray:
    """Each annotation's row of the images, of which there are some; any where it has none."""
    order = np.argsort(image_ids)  # in order, the search stays in the processor's cache
    rows = np.empty(len(image_ids), np.int64)
    rows[order] = np.searchsorted(images.ids, image_ids[order])
    return rows.clip(max=len(images.ids) - 1)


def _clipped(boxes_xywh: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (xyxy) inside their images, and how many pixels they reached out."""
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = xywh_to_xyxy(boxes_xywh)
        limits = np.tile(sizes.T[::-1], (2, 1)).T
        overhang = np.maximum(-boxes, boxes - limits).max(axis=1, initial=0)
        return np.clip(boxes, 0, limits), overhang


def _masks(mode: MaskMode, items: list[CocoAnnotation], sizes: np.ndarray) -> EncodedMasks:
    if mode == "none":
        return EncodedMasks([None] * len(items), np.full(len(items), np.nan), [])
    raw = [bytes(item.segmentation) for item in items]
    return encode_segmentations(raw, sizes[:, 0].tolist(), sizes[:, 1].tolist())


def _areas(
    items: list[CocoAnnotation], boxes: np.ndarray, crowds: np.ndarray, masks: EncodedMasks
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The file's areas, the mask's or box's where it gives none or a wrong one; rows of these by reason.

    Crowds are believed: COCO's own state areas that are far from their masks'. 0 is not: MMDetection leaves
    such things out of the training, and the evaluation counts them. A mask thinner than a pixel says nothing.
    """
    areas = [np.nan if item.area is None else item.area for item in items]
    given = np.fromiter(areas, np.float64, len(items))
    of_masks = np.where(masks.areas > 0, masks.areas, np.nan)
    masked = ~np.isnan(of_masks)
    outline = 2 * (boxes[:, 2:] - boxes[:, :2]).sum(axis=1)
    outline = np.maximum(outline, 1)  # of pixels: things smaller than one have it all the same
    tolerance = np.maximum(outline, _AREA_TOLERANCE * of_masks)
    with np.errstate(invalid="ignore"):
        wrong = ~crowds & (np.abs(given - of_masks) > tolerance) | (given <= 0) | np.isinf(given)
    own = np.where(masked, of_masks, box_area(boxes))
    return np.where(np.isnan(given) | wrong, own, given), {
        "area differs from the mask's (mask's taken)": np.flatnonzero(wrong & masked),
        "area is not above 0, or infinite (box's taken)": np.flatnonzero(wrong & ~masked),
    }


def _as_shown(
    images: AcceptedImages, image_ids: np.ndarray, boxes: np.ndarray, counts: list[str | None]
) -> tuple[np.ndarray, list[str | None]]:
    """Boxes and masks of known images, turned where what is stated of them is to be."""
    if np.all(images.orientations == 1):
        return boxes, counts
    rows = _image_rows(images, image_ids)
    sizes, orientations = images.sizes[rows], images.orientations[rows]
    turned = list(counts)
    for row in np.flatnonzero(orientations != 1):
        if (mask := counts[row]) is not None:
            height, width = sizes[row].tolist()
            turned[row] = turn_mask(mask, height, width, int(orientations[row]))
    return turn_boxes(boxes, sizes, orientations), turned


def _texts(raw: list[msgspec.Raw]) -> pa.Array:
    if raw.count(NULL) == len(raw):  # by identity, without a look inside
        return pa.nulls(len(raw), pa.string())
    texts = [bytes(item).decode("utf-8", "replace") for item in raw]
    return pa.array([None if text == "null" else text for text in texts], pa.string())
