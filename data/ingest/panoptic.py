"""Stuff from COCO's panoptic format: a PNG an image, whose colours number its segments.

The format is `panopticapi`'s: segment id = R + 256 G + 65536 B.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from data.coco.files import NULL, CocoAnnotation, Id
from data.coco.records import SpanJob
from data.ingest.annotations import AnnotationContext, ObjectRows, checked_rows, image_sizes
from data.ingest.image_checks import name_inside
from data.vocabulary.images import image_problem, read_rgb
from data.vocabulary.masks import encode_mask


class PanopticSegment(msgspec.Struct, gc=False):
    """An entry of `segments_info`."""

    id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool | int | None = 0


class CocoPanoptic(msgspec.Struct, gc=False):
    """An entry of `annotations`: an image and the PNG of its segments."""

    image_id: Id
    file_name: str
    segments_info: list[PanopticSegment]


@dataclass(frozen=True, slots=True)
class PanopticContext:
    """What a panoptic annotation is read with.

    Attributes:
        objects: what its stuff segments are checked against.
        thing_ids: categories whose segments are passed over.
        folder: of the PNGs, absolute.
    """

    objects: AnnotationContext
    thing_ids: frozenset[int]
    folder: Path


def panoptic_rows(context: PanopticContext, job: SpanJob) -> ObjectRows:
    """Read, check and encode the stuff segments of one span's annotations.

    A segment's id counts within its image only: its object id is made of both.

    Raises:
        UnprovenIndex: the span does not hold well-formed records and `job.salvage` is off.
        InvalidDataset: the span is not JSON.
    """
    annotations, offences = job.decode(CocoPanoptic)
    records: list[CocoAnnotation] = []
    names: list[str] = []
    image_ids = np.array([item.image_id for item in annotations], np.int64)
    sizes, known = image_sizes(context.objects.images, image_ids)
    for annotation, size, is_known in zip(annotations, sizes.tolist(), known, strict=True):
        stuff = [
            item for item in annotation.segments_info if item.category_id not in context.thing_ids
        ]
        ids, problem = None, None
        if stuff and is_known and context.objects.masks != "none":
            ids, problem = _segment_ids(context.folder, annotation.file_name, *size)
        if problem:
            offences.append((problem, str(annotation.image_id)))
        for item, mask in zip(stuff, _masks(stuff, ids), strict=True):
            records.append(_record(annotation.image_id, item, mask))
            names.append(f"{annotation.image_id}/{item.id}")
    return checked_rows(context.objects, records, names.__getitem__, offences)


def _segment_ids(
    folder: Path, file_name: str, height: int, width: int
) -> tuple[np.ndarray | None, str | None]:
    """The id at every pixel (height, width), or why it cannot be told."""
    name = name_inside(folder, file_name)
    if name is None:
        return None, "panoptic PNG: file name leaves its folder (box kept)"
    if problem := image_problem(folder / name, width, height):
        return None, f"panoptic PNG: {problem} (box kept)"
    try:
        colours = np.asarray(read_rgb(folder / name))
    except Exception:  # noqa: BLE001  # decoders raise anything over a broken body
        return None, "panoptic PNG: image file cut short or damaged (box kept)"
    return colours.astype(np.int64) @ np.array([1, 256, 256**2]), None


def _masks(segments: list[PanopticSegment], ids: np.ndarray | None) -> Iterator[msgspec.Raw]:
    for item in segments:
        if ids is None:
            yield NULL
        else:
            mask = ids == item.id
            found = encode_mask(mask) if mask.any() else "no such segment"
            yield msgspec.Raw(msgspec.json.encode(found))


def _object_id(image_id: int, segment_id: int) -> int:
    """A number of 53 bits, which every reader of numbers can hold."""
    digest = hashlib.blake2b(f"{image_id}/{segment_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") >> 3


def _record(image_id: int, item: PanopticSegment, mask: msgspec.Raw) -> CocoAnnotation:
    return CocoAnnotation(
        id=_object_id(image_id, item.id),
        image_id=image_id,
        category_id=item.category_id,
        bbox=item.bbox,
        area=item.area,
        iscrowd=item.iscrowd,
        segmentation=mask,
    )
