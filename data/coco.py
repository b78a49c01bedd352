"""COCO files: typed reading with msgspec, writing."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from data.boxes import xywh_to_xyxy
from data.errors import InvalidDataset


class CocoImage(msgspec.Struct):
    """An entry of `images`."""

    id: int
    file_name: str
    width: int
    height: int


class CocoAnnotation(msgspec.Struct):
    """An entry of `annotations`; `segmentation` is left undecoded."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int = 0
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    difficulty: msgspec.Raw = msgspec.Raw(b"null")


class CocoCategory(msgspec.Struct):
    """An entry of `categories`."""

    id: int
    name: str
    supercategory: str = ""


class CocoFile(msgspec.Struct):
    """A COCO instances or stuff file; unknown keys are ignored."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def read_coco(path: Path) -> CocoFile:
    """Read a COCO instances or stuff file.

    Raises:
        InvalidDataset: the file is missing, not JSON, or not of COCO's structure; the message names
            the place.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=CocoFile, strict=False)
    except OSError as error:
        raise InvalidDataset(
            f"{path}: {error.strerror}; give the path of a COCO JSON file"
        ) from error
    except msgspec.DecodeError as error:
        raise InvalidDataset(f"{path} is not a COCO file: {error}") from error
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"{path} is not UTF-8 text: {error}") from error


def write_coco(
    path: Path,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    categories: Mapping[int, str],
) -> None:
    """Write a COCO instances file that pycocotools and MMDetection read without further code."""
    document = {
        "info": {"description": "written by detdiffusion"},
        "licenses": [],
        "images": list(images),
        "annotations": list(annotations),
        "categories": [{"id": key, "name": name} for key, name in categories.items()],
    }
    path.write_text(json.dumps(document))


def boxes_by_image(file: CocoFile) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Boxes (xyxy, pixels) and category ids of every image's annotations that are not crowds."""
    rows: dict[int, list[CocoAnnotation]] = {image.id: [] for image in file.images}
    for item in file.annotations:
        if not item.iscrowd:
            rows[item.image_id].append(item)
    return {
        image_id: (
            xywh_to_xyxy(np.array([item.bbox for item in items]).reshape(-1, 4)),
            np.array([item.category_id for item in items], dtype=np.int64),
        )
        for image_id, items in rows.items()
    }
