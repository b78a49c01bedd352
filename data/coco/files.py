"""COCO files: the types of their entries, lenient decoding, writing."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Side = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class CocoImage(msgspec.Struct, gc=False):
    """An entry of `images`."""

    id: Id
    file_name: str
    width: Side
    height: Side


NULL = msgspec.Raw(b"null")
"""What a raw field holds that is not given."""


class CocoAnnotation(msgspec.Struct, gc=False):
    """An entry of `annotations`; `segmentation` is left undecoded."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool | int | None = 0
    segmentation: msgspec.Raw = NULL
    difficulty: msgspec.Raw = NULL


class CocoCategory(msgspec.Struct, gc=False):
    """An entry of `categories`."""

    id: Id
    name: str
    supercategory: str | None = ""
    isthing: bool | int | None = None


def decode_json(text: bytes | bytearray) -> Any:
    """Decode JSON leniently: NaN, Infinity, broken UTF-8 and a byte order mark pass.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(text.decode("utf-8-sig", "surrogateescape"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


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
