"""A COCO file cut into one to train on and one to validate on, by groups of images that belong together."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.coco.files import decode_json
from data.coco.records import open_index
from data.errors import InvalidDataset


def read_document(path: Path) -> dict[str, Any]:
    """Read a whole COCO file as it is, with all keys and broken records, into memory.

    Raises:
        InvalidDataset: the file cannot be read or is not a COCO file.
    """
    open_index(path)
    try:
        document: dict[str, Any] = decode_json(path.read_bytes())
    except ValueError as error:
        raise InvalidDataset(f"{path} is not a COCO file: {error}") from error
    return document


def group_of(file_name: str, pattern: re.Pattern[str] | None) -> str:
    """What an image belongs to: what a pattern's first group matches, or all of it; else itself alone.

    >>> group_of("films/a_0017.jpg", re.compile(r"(.*)_[0-9]+"))
    'films/a'
    """
    return (matched(file_name, pattern) if pattern else None) or file_name


def matched(file_name: str, pattern: re.Pattern[str]) -> str | None:
    """What a pattern's first group matches, or all of it; an empty text says nothing either."""
    found = pattern.search(file_name)
    return found[min(found.re.groups, 1)] if found else None


def held_out(groups: Sequence[str], share: float) -> set[str]:
    """Choose groups to validate on, by the digests of their names, until they have a share of the images.

    Args:
        groups: that of each image.
        share: of the images, in (0, 0.5]; a group is passed over with which more than half would be held out.

    >>> sorted(held_out(["a", "b", "c", "d", "d"], 0.4))
    ['d']
    """
    sizes, chosen, count = Counter(groups), set[str](), 0
    for group in sorted(sizes, key=_digest):
        if count < share * len(groups) and count + sizes[group] <= len(groups) / 2:
            chosen.add(group)
            count += sizes[group]
    return chosen


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def file_names(document: Mapping[str, Any]) -> dict[str, str]:
    """The images of a COCO file that have a name: id as text to name."""
    return {
        _key(item, "id"): str(item["file_name"])
        for item in document["images"]
        if isinstance(item, Mapping) and "file_name" in item
    }


def split_document(
    document: Mapping[str, Any], pattern: re.Pattern[str] | None, share: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cut a COCO file; what cannot be told to belong to a held-out image is in the first part.

    Args:
        document: as `read_document` returns it.
        pattern: see `group_of`.
        share: see `held_out`.

    Raises:
        InvalidDataset: all images are of one group.
    """
    groups = {key: group_of(name, pattern) for key, name in file_names(document).items()}
    chosen = held_out(list(groups.values()), share)
    if not chosen:
        raise InvalidDataset(_why_not(len(groups), pattern))
    out = {key for key, group in groups.items() if group in chosen}
    return _part(document, lambda key: key not in out), _part(document, lambda key: key in out)


def _why_not(num_images: int, pattern: re.Pattern[str] | None) -> str:
    """Why nothing can be held out."""
    if num_images == 0:
        return "it names no image"
    if num_images == 1:
        return "it names one image, which cannot be split: give validation images as --val"
    return (
        f"its {num_images} images all belong together by {pattern.pattern if pattern else 'their name'!r}: "
        "give another --group-by, or validation images as --val"
    )


def _part(document: Mapping[str, Any], is_wanted: Callable[[str], bool]) -> dict[str, Any]:
    keys = {"images": "id", "annotations": "image_id"}
    wanted = {
        name: [item for item in document[name] if is_wanted(_key(item, key))]
        for name, key in keys.items()
    }
    return {**document, **wanted}


def _key(item: Any, name: str) -> str:
    """An id as text: numbers may be written as texts, and with a point."""
    value = item.get(name) if isinstance(item, Mapping) else ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)
