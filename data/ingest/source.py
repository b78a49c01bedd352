"""Identity of a COCO-format data set: the content of its files and of what their records name."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from data.artifacts.digests import DigestMemory, combined_digest
from data.coco.files import CocoCategory, Id
from data.coco.records import Offence, Record, SpanJob, map_spans, open_index
from data.coco.stream import Section
from data.ingest.image_checks import is_unicode, name_inside
from data.workers import Workers


class _FileName(msgspec.Struct):
    """An entry of `images`, or of a panoptic file's `annotations`, of which the name alone is looked at."""

    file_name: str


class _ImageOfObject(msgspec.Struct, gc=False):
    """An entry of `annotations`, of which little is looked at."""

    image_id: Id
    iscrowd: bool | int | None = 0


def source_digest(
    things: Sequence[Path],
    stuff: Sequence[Path],
    images: Path,
    panoptic: Path | None,
    pngs: Path,
    digests: DigestMemory,
) -> str:
    """Digest of a split: its JSON files' content, and that of every image that they name.

    Where the files lie is no part of it, nor are files that no record names. An image that is not
    there, or may not be read, has no content.

    Args:
        things: COCO files of things.
        stuff: COCO files of stuff.
        images: folder of their images.
        panoptic: COCO panoptic file.
        pngs: folder of its PNGs.

    Raises:
        InvalidDataset: a file is not a COCO file.
        OSError: a file cannot be read.
    """
    names = {
        name
        for path in [*things, *stuff, *filter(None, [panoptic])]
        for name in image_names(path, digests)
    }
    lines = [f"things {digest}" for digest in digests.files(things)]
    lines += [f"stuff {digest}" for digest in digests.files(stuff)]
    lines += _contents(images, names, digests)
    if panoptic:
        lines.append(f"panoptic {digests.file(panoptic)}")
        lines += _contents(pngs, digests.fact(panoptic, "PNG names", _png_names), digests)
    return combined_digest(lines)


def image_names(path: Path, digests: DigestMemory) -> list[str]:
    """Names of the image files that a COCO or panoptic file lists, with repetitions.

    Raises:
        InvalidDataset: it is not a COCO file.
        OSError: it cannot be read.
    """
    return digests.fact(path, "image names", _image_names)


def images_digest(folder: Path, names: Iterable[str], digests: DigestMemory) -> str:
    """Digest of image files' names in their folder and of their content."""
    return combined_digest(_contents(folder, names, digests))


def category_names(files: Iterable[Path], digests: DigestMemory) -> set[str]:
    """Names of all categories of COCO files.

    Raises:
        InvalidDataset: a file is not a COCO file.
        OSError: a file cannot be read.
    """
    found = (digests.fact(path, "category names", _category_names) for path in files)
    return {name for names in found for name in names}


@dataclass(frozen=True, slots=True)
class ObjectCounts:
    """How many objects a COCO file has.

    Attributes:
        objects: annotations.
        images: that have one which is no crowd.
    """

    objects: int
    images: int


def object_counts(files: Iterable[Path], digests: DigestMemory) -> ObjectCounts:
    """Count the well-formed annotations of COCO files that have no image in common.

    Raises:
        InvalidDataset: a file is not a COCO file.
        OSError: a file cannot be read.
    """
    found = [digests.fact(path, "object counts", _object_counts) for path in files]
    return ObjectCounts(*(sum(int(item[part]) for item in found) for part in range(2)))


def _contents(folder: Path, file_names: Iterable[str], digests: DigestMemory) -> list[str]:
    """A line for each file that the records name, with the digest of its content."""
    root = Path(os.path.abspath(folder))  # noqa: PTH100  # links in it stay as they are
    names = sorted(set(file_names))
    inside = {name: name_inside(root, name) for name in names}
    paths = {name: root / place for name, place in inside.items() if place}
    there = [name for name, path in paths.items() if _is_readable(path)]
    known = dict(zip(there, digests.files([paths[name] for name in there]), strict=True))
    return [f"{name} {known.get(name, 'missing')}" for name in names]


def _is_readable(path: Path) -> bool:
    """Whether there is such a file that may be read; any name is allowed."""
    return os.path.isfile(path) and os.access(path, os.R_OK)  # noqa: PTH113  # Path.is_file raises


def _image_names(path: Path) -> list[str]:
    return _texts(path, "images", _FileName, "file_name")


def _png_names(path: Path) -> list[str]:
    return _texts(path, "annotations", _FileName, "file_name")


def _category_names(path: Path) -> list[str]:
    return _texts(path, "categories", CocoCategory, "name")


def _object_counts(path: Path) -> list[str]:
    count, images = 0, set[int]()
    for item in _records(path, "annotations", _ImageOfObject):
        count += 1
        if not item.iscrowd:
            images.add(item.image_id)
    return [str(count), str(len(images))]


def _texts(path: Path, section: Section, kind: type[msgspec.Struct], field: str) -> list[str]:
    """One field of every well-formed record of a section, where UTF-8 can write it."""
    found = (getattr(item, field) for item in _records(path, section, kind))
    return [text for text in found if is_unicode(text)]


def _records(path: Path, section: Section, kind: type[Record]) -> Iterator[Record]:
    """The well-formed records of a section."""

    def decode(_: None, job: SpanJob) -> tuple[list[Record], list[Offence]]:
        return job.decode(kind)

    for items, _ in map_spans(open_index(path), section, decode, Workers(None)):
        yield from items
