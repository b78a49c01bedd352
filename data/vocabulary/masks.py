"""Masks as COCO run-length encodings (column-major, compressed), through pycocotools."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

_FARTHEST = 1e5
"""Pixels; pycocotools walks along every edge, however far outside of the image it leads."""


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a boolean mask (height, width) as COCO's compressed RLE with `counts` as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")}


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """Decode compressed RLE counts to a boolean mask (height, width)."""
    decoded = coco_mask.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return np.asarray(decoded, dtype=bool)


@dataclass(frozen=True, slots=True)
class EncodedMasks:
    """Masks of a series of objects.

    Attributes:
        counts: compressed RLE counts, None where an object has no mask or a broken one.
        areas: pixels, float64; NaN where there is no mask.
        broken: indices of objects whose segmentation is neither polygons nor an RLE of the image.
    """

    counts: list[str | None]
    areas: np.ndarray
    broken: list[int]


class _RunLengths(msgspec.Struct):
    size: tuple[int, int]
    counts: str | list[int]


_Coordinate = Annotated[float, msgspec.Meta(ge=-_FARTHEST, le=_FARTHEST)]
_Polygons = list[Annotated[list[_Coordinate], msgspec.Meta(min_length=6)]]
_Segmentation = _Polygons | _RunLengths | None


def encode_segmentations(
    segmentations: Sequence[bytes], heights: Sequence[int], widths: Sequence[int]
) -> EncodedMasks:
    """Turn COCO segmentations (polygons, uncompressed or compressed RLE, as JSON) into RLE.

    pycocotools draws the polygons, all those of one image size in one call.

    Args:
        heights: of the objects' images, pixels.
        widths: of the objects' images, pixels.
    """
    encoded = _Encoder(len(segmentations))
    decoded = _decode_all(segmentations)
    for row, (item, size) in enumerate(
        zip(decoded, zip(heights, widths, strict=True), strict=True)
    ):
        encoded.add(row, item, size)
    return encoded.finish()


def _decode_all(segmentations: Sequence[bytes]) -> list[Any]:
    """Decode all at once; where one is of another form, each by itself, that one to `Ellipsis`."""
    try:
        return msgspec.json.decode(b"[" + b",".join(segmentations) + b"]", type=list[_Segmentation])
    except ValueError:
        return [_decode_one(item) for item in segmentations]


def _decode_one(segmentation: bytes) -> Any:
    try:
        return msgspec.json.decode(segmentation, type=_Segmentation)
    except ValueError:
        return ...


class _Encoder:
    def __init__(self, count: int):
        self._rles: list[dict[str, Any] | None] = [None] * count
        self._polygons: dict[tuple[int, int], list[tuple[int, _Polygons]]] = defaultdict(list)
        self._broken: list[int] = []

    def add(self, row: int, item: Any, size: tuple[int, int]) -> None:
        match item:
            case None | []:
                pass
            case [*polygons] if not any(len(points) % 2 for points in polygons):
                self._polygons[size].append((row, polygons))
            case _RunLengths(size=found, counts=counts) if found == size:
                rle = _checked_rle(counts, *size)
                self._rles[row] = rle
                if rle is None:
                    self._broken.append(row)
            case _:
                self._broken.append(row)

    def finish(self) -> EncodedMasks:
        for (height, width), items in self._polygons.items():
            flat = [polygon for _, polygons in items for polygon in polygons]
            parts = iter(coco_mask.frPyObjects(flat, height, width))
            for row, polygons in items:
                drawn = [next(parts) for _ in polygons]
                self._rles[row] = drawn[0] if len(drawn) == 1 else coco_mask.merge(drawn)
        return EncodedMasks(
            [rle["counts"].decode("ascii") if rle else None for rle in self._rles],
            np.array([coco_mask.area(rle) if rle else np.nan for rle in self._rles], np.float64),
            sorted(self._broken),
        )


def _checked_rle(counts: str | list[int], height: int, width: int) -> dict[str, Any] | None:
    """The RLE with compressed counts; None where its runs do not fill the image."""
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not runs or min(runs) < 0 or sum(runs) != height * width:
        return None
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode("ascii")}
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _runs(counts: str) -> list[int]:
    """Lengths of the runs in compressed counts; empty where the text is no such thing.

    pycocotools trusts the text and reads beyond its end where the last character says that another
    follows; hence this. Five bits a character, lowest first, and a bit for "more"; from the fourth
    on a run is given as the difference to the last but one (`rleFrString` in pycocotools' maskApi.c).
    """
    runs: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8", "replace"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            return []
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return [] if shift else runs
