"""From the images of COCO files to checked rows of the table `images`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from data.coco.files import CocoImage
from data.coco.records import Offence, SpanJob, map_spans
from data.coco.stream import CocoIndex
from data.ingest.id_set import IdSet
from data.ingest.options import ExifMode
from data.ingest.refusals import Refusals
from data.vocabulary.images import (
    FILE_MISSING,
    FIRST_SIDEWAYS,
    MAX_PIXELS,
    SIZE_BEFORE_EXIF,
    image_problem,
    is_in_low_bits,
    orientation,
    shown_size,
)
from data.vocabulary.splits import Split
from data.vocabulary.tables import IMAGES
from data.workers import Workers

OTHER_CASE = f"{FILE_MISSING}: there is one whose name differs in case"
SIZE_AFTER_EXIF = "size is that of the image as EXIF shows it"

_BATCH = 256

_SUFFIXES_OF_8_BITS = frozenset({".jpe", ".jpeg", ".jpg"})
"""Of files that are not opened once more to see whether they are dark."""


@dataclass(frozen=True, slots=True)
class ImageContext:
    """What an image is checked against.

    Attributes:
        split: of the data set.
        root: folder that file names are relative to, absolute.
        look: whether the files are looked at; if not, what the JSON says is believed.
        exif: whether what is stated is of images as EXIF shows them, or as they are stored.
    """

    split: Split
    root: Path
    look: bool
    exif: ExifMode = "shown"


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Rows of `images`, what was left out, and how many records that makes.

    Attributes:
        orientations: how what is stated of each row's image is to be turned, EXIF's; uint8 (num_rows,).
        num_dark: rows of images that use the lowest 12 of 16 bits alone.
    """

    batch: pa.RecordBatch
    offences: list[Offence]
    num_records: int
    orientations: np.ndarray
    num_dark: int


@dataclass(frozen=True, slots=True)
class AcceptedImages:
    """The images of a split that annotations may be of.

    Attributes:
        ids: ascending, int64 (num_images,).
        sizes: height and width as they are stated, int32 (num_images, 2).
        orientations: how what is stated is to be turned, EXIF's; uint8 (num_images,).
    """

    ids: np.ndarray
    sizes: np.ndarray
    orientations: np.ndarray


def image_rows(context: ImageContext, records: list[CocoImage]) -> ImageRows:
    """Check images, their files included; ids are taken to be unique."""
    names = [name_inside(context.root, item.file_name) for item in records]
    orientations = [_orientation(context, name) for name in names]
    records = [_shown(item, turn) for item, turn in zip(records, orientations, strict=True)]
    problems = [_problem(context, item, name) for item, name in zip(records, names, strict=True)]
    offences = [
        (problem, f"{context.split}/{printable(item.file_name) or item.id}")
        for item, problem in zip(records, problems, strict=True)
        if problem
    ]
    kept = [row for row, problem in enumerate(problems) if not problem]
    items = [records[row] for row in kept]
    columns = [
        pa.repeat(context.split, len(kept)),
        [item.id for item in items],
        [names[row] for row in kept],
        [item.width for item in items],
        [item.height for item in items],
    ]
    arrays = [pa.array(column, kind) for column, kind in zip(columns, IMAGES.types, strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, schema=IMAGES)
    kept_orientations = np.array([orientations[row] for row in kept], np.uint8)
    num_dark = sum(_is_dark(context, str(names[row])) for row in kept)
    return ImageRows(batch, offences, len(records), kept_orientations, num_dark)


def unlabelled_rows(context: ImageContext, files: list[tuple[int, str]]) -> ImageRows:
    """Check image files of which nothing is stated, by id and name; their size is their own."""
    sizes = [shown_size(context.root / name) or (1, 1) for _, name in files]  # refused by reason
    records = [CocoImage(*file, *size) for file, size in zip(files, sizes, strict=True)]
    return image_rows(context, records)


def printable(name: str) -> str:
    """A file name that can be written, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()


def name_inside(root: Path, file_name: str) -> str | None:
    """Name relative to the image folder; None if it leads out of it. Links are not followed."""
    if file_name and "/" not in file_name and file_name not in {".", ".."}:
        return file_name
    path = Path(os.path.normpath(root / file_name))
    for folder in (root, root.resolve()):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return None


def _orientation(context: ImageContext, name: str | None) -> int:
    """How what is stated of an image is to be turned: not at all where it is of the image as shown."""
    return orientation(context.root / name) if name and context.exif == "stored" else 1


def _shown(item: CocoImage, turn: int) -> CocoImage:
    """An image with its size as it is shown."""
    if turn < FIRST_SIDEWAYS:
        return item
    return msgspec.structs.replace(item, width=item.height, height=item.width)


def _is_dark(context: ImageContext, name: str) -> bool:
    path = context.root / name
    is_looked_at = context.look and path.suffix.lower() not in _SUFFIXES_OF_8_BITS
    return is_looked_at and is_in_low_bits(path)


def _problem(context: ImageContext, item: CocoImage, name: str | None) -> str | None:
    if not item.file_name.isascii() and not is_unicode(item.file_name):
        return "file name is not UTF-8"
    if item.width <= 0 or item.height <= 0:
        return "image without area"
    if item.width * item.height > MAX_PIXELS:
        return "image of gigantic size"
    if name is None:
        return "file name leaves the image folder: write names relative to it"
    return _file_problem(context, item, name) if context.look else None


def _file_problem(context: ImageContext, item: CocoImage, name: str) -> str | None:
    problem = image_problem(context.root / name, item.width, item.height)
    if problem == SIZE_BEFORE_EXIF and context.exif == "stored":
        return SIZE_AFTER_EXIF
    if problem != FILE_MISSING:
        return problem
    if "\\" in name:
        return f"{FILE_MISSING}: its name has \\, as on Windows; write / for it"
    return OTHER_CASE if file_of_other_case(context.root / name) else FILE_MISSING


def file_of_other_case(path: Path) -> Path | None:
    """A file whose name has another case, of its ending or of all its letters; None where there is none."""
    names = (path.stem + path.suffix.swapcase(), path.name.lower(), path.name.upper())
    try:
        return next((other for name in names if (other := path.with_name(name)).is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can write a text; lone surrogates stand for bytes that are no UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(slots=True)
class ImageReader:
    """Reads the images of a split's files, each image once, in a few bytes of memory an image.

    Attributes:
        num_dark: images so far that use the lowest 12 of 16 bits alone.
    """

    context: ImageContext
    refusals: Refusals
    num_dark: int = 0
    _seen: IdSet = field(default_factory=IdSet)
    _fingerprints: IdSet = field(default_factory=IdSet)
    _ids: list[np.ndarray] = field(default_factory=list)
    _sizes: list[np.ndarray] = field(default_factory=list)
    _orientations: list[np.ndarray] = field(default_factory=list)

    def read(self, index: CocoIndex, workers: Workers[ImageContext]) -> Iterator[ImageRows]:
        """Yield the rows of one file; images that an earlier file names alike are passed over.

        Raises:
            InvalidDataset: the file is not a COCO file.
        """
        for rows in workers.map(image_rows, self._new_records(index)):
            self.refusals.add_all(rows.offences)
            self._ids.append(rows.batch["image_id"].to_numpy().copy())
            sizes = np.stack([rows.batch["height"], rows.batch["width"]], axis=1)
            exchanged = rows.orientations[:, None] >= FIRST_SIDEWAYS
            stated = np.where(exchanged, sizes[:, ::-1], sizes)
            self._sizes.append(stated.astype(np.int32))
            self._orientations.append(rows.orientations)
            self.num_dark += rows.num_dark
            yield rows

    def accepted(self) -> AcceptedImages:
        """The images of all files that were read."""
        ids = np.concatenate([np.zeros(0, np.int64), *self._ids])
        sizes = np.concatenate([np.zeros((0, 2), np.int32), *self._sizes])
        orientations = np.concatenate([np.zeros(0, np.uint8), *self._orientations])
        order = np.argsort(ids)
        return AcceptedImages(ids[order], sizes[order], orientations[order])

    def _new_records(self, index: CocoIndex) -> Iterator[list[CocoImage]]:
        split, in_file = self.context.split, IdSet()
        for records, malformed in map_spans(index, "images", decode_images, Workers(None)):
            self.refusals.add_all((reason, f"{split}/{item}") for reason, item in malformed)
            ids = np.array([item.id for item in records], np.int64)
            repeated = ~in_file.add(ids)
            is_new = self._seen.add(ids)
            same = ~self._fingerprints.add(_fingerprints(records, ids))
            clash = repeated | ~is_new & ~same
            labels = [f"{split}/{ids[row]}" for row in np.flatnonzero(clash)]
            if labels:
                self.refusals.add("duplicate image id", *labels)
            new = [records[row] for row in np.flatnonzero(is_new)]
            for start in range(0, len(new), _BATCH):
                yield new[start : start + _BATCH]


def decode_images(_: None, job: SpanJob) -> tuple[list[CocoImage], list[Offence]]:
    """Decode the images of a span, as `SpanJob.decode`."""
    return job.decode(CocoImage)


def _fingerprints(records: list[CocoImage], ids: np.ndarray) -> np.ndarray:
    """A number for each id with its file name and size, the same all through this process."""
    names = np.array(
        [hash((item.file_name, item.width, item.height)) for item in records], np.int64
    )
    return ids * 2**32 + names  # which may wrap around
