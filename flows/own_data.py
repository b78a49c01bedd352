"""A data set of a user's: where it lies, and what it is like."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.artifacts.digests import DigestMemory
from data.coco.near_duplicates import find_near_duplicates
from data.coco.splitting import file_names, matched, read_document, split_document
from data.errors import InvalidConfig, InvalidDataset
from data.ingest.image_checks import OTHER_CASE, file_of_other_case
from data.ingest.ingestion import write_tables
from data.ingest.options import IngestConfig, SplitConfig, TileConfig
from data.ingest.refusals import NUM_EXAMPLES, reasons
from data.ingest.source import image_names
from data.ingest.stated_images import StatedImages, stated_images
from data.ingest.survey import Survey, fitting_resolution, fitting_tile, survey
from data.ingest.tiles import write_tiles
from data.vocabulary.images import FILE_MISSING
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset
from tasks.estimates.data_size import PNG_BYTES

VAL_SHARE = 0.2
MOST = 0.9
"""Share of the images of which no layout is left out for its number of objects."""

_MANY = 0.1
"""Of the images, above which so many are left out that it is said first."""

_SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class NewConfig:
    """Where a user's data set lies, and what is to be written for it.

    Attributes:
        instances: COCO file.
        images: folder of its images.
        val: COCO file of validation images; None: the first file is split.
        val_images: folder of their images; None: the same.
        out: the new TOML file; the parts of a file that is split are written beside it.
        group_by: regular expression for file names, of which equal matches stay together in a split.
        force: whether files that are there are replaced.
    """

    instances: Path
    images: Path
    val: Path | None
    val_images: Path | None
    out: Path
    group_by: str | None
    force: bool

    @property
    def splits(self) -> dict[Split, SplitConfig]:
        """What `ingest` is to read."""
        files = {"train": self.instances, "val": self.val}
        if self.val is None:
            files = {name: self.out.parent / f"instances_{name}.json" for name in _SPLITS}
        folders = {"train": self.images, "val": self.val_images or self.images}
        return {
            name: SplitConfig.model_validate({"instances": files[name], "images": folders[name]})
            for name in _SPLITS
        }

    @property
    def files(self) -> list[Path]:
        """What is written."""
        parts = [] if self.val else [split.instance_files[0] for split in self.splits.values()]
        return [*parts, self.out]


@dataclass(frozen=True, slots=True)
class Found:
    """What a data set turned out to be.

    Attributes:
        whole: its images by split.
        shown: what is trained on and drawn: these, or tiles of them.
        tile: how they are cut.
        classes: id to name.
        refused: what was left out or mended, by reason.
        warnings: what else ingest found.
        stated: what the files state of their images.
        grouping: what a user should know of how it was split; None: nothing.
    """

    whole: Mapping[Split, Survey]
    shown: Mapping[Split, Survey]
    tile: TileConfig | None
    classes: Mapping[int, str]
    refused: Sequence[str]
    warnings: Sequence[str]
    stated: StatedImages
    grouping: str | None = None

    @property
    def has_masks(self) -> bool:
        """Whether any object has one."""
        return any(item.num_masks for item in self.whole.values())

    @property
    def max_objects(self) -> int:
        """Of a layout: more has one in ten of those that have some, in either split."""
        return max(item.most_objects(MOST) for item in self.shown.values())

    def without(self, split: Split) -> str:
        """Names of the classes that have no object in a split."""
        ids = set(self.classes) - self.whole[split].category_ids
        return _some(sorted(self.classes[item] for item in ids))

    def _reading(self) -> str:
        """How the annotations of images that EXIF turns are read, and why."""
        stated = self.stated
        if told := stated.num_shown + stated.num_stored:
            number = stated.num_stored if stated.exif == "stored" else stated.num_shown
            why = f"sizes say so of {number} of {told}"
        else:
            why = "no size tells"
        other = "shown" if stated.exif == "stored" else "stored"
        return (
            f"annotations are taken to be of images as they are {stated.exif}, and {why}; "
            f'ingest.exif = "{other}" takes them for the other'
        )

    def notes(self) -> Iterator[str]:
        """What a user should know."""
        counts = {name: len(item.image_sizes) for name, item in self.whole.items()}
        num_objects = sum(len(item.object_sides) for item in self.whole.values())
        left_out = self.stated.count - sum(counts.values())
        if left_out > _MANY * self.stated.count:
            yield f"{left_out} of {self.stated.count} images are left out"
        yield (
            f"{counts['train']} images to train on and {counts['val']} to validate on, "
            f"{len(self.classes)} classes, {num_objects} objects"
        )
        if self.grouping:
            yield self.grouping
        yield from self.refused
        yield from self.warnings
        if self.tile:
            tiles = {name: len(item.image_sizes) for name, item in self.shown.items()}
            pixels = sum(item.image_sizes.prod(axis=1).sum() for item in self.shown.values())
            yield (
                f"images are cut into {tiles['train']} and {tiles['val']} tiles of {self.tile.size} pixels, "
                f"about {pixels * PNG_BYTES / 1e9:.2g} GB of files"
            )
        if turned := self.stated.turned:
            yield f"EXIF turns or mirrors {len(turned)} images ({_some(turned)}): {self._reading()}"
        for split, what in zip(_SPLITS, ("learnt", "measured"), strict=True):
            if names := self.without(split):
                yield f"no {split} object, so cannot be {what}: {names}"
        if not self.has_masks:
            yield "no object has a mask: its box stands for it"


def look(sources: Mapping[Split, SplitConfig], folder: Path, num_workers: int) -> Found:
    """Read a data set as `ingest` does.

    Args:
        sources: its splits.
        folder: for tables and tiles, which nobody needs afterwards.
        num_workers: processes.

    Raises:
        InvalidDataset: it has no usable image or object.
    """
    tables, cut = folder / "tables", folder / "tiles"
    tables.mkdir()
    stated = stated_images(sources.values())
    try:
        config = IngestConfig(exif=stated.exif)
        summary = write_tables(config, sources, tables, num_workers)
    except InvalidDataset as error:
        hints = ", or ".join(_ways_out(str(error), sources.values()))
        raise InvalidDataset(f"{error}: {hints}" if hints else str(error)) from error
    dataset = Dataset(tables)
    whole = {name: survey(dataset, name) for name in sources}
    tile = fitting_tile(whole["train"], fitting_resolution(*whole["train"].median_size))
    shown = whole
    if tile:
        cut.mkdir()
        write_tiles(tile, sources, tables, cut, num_workers)
        shown = {name: survey(Dataset(cut), name) for name in sources}
    refused = reasons(summary["refused"])
    return Found(whole, shown, tile, dataset.things, refused, summary["warnings"], stated)


@dataclass(frozen=True, slots=True)
class Parts:
    """A COCO file that was split.

    Attributes:
        texts: the files that it becomes.
        group_by: the expression that it was split by.
        grouping: what a user should know of that; None: nothing.
    """

    texts: Mapping[Split, str]
    group_by: str | None
    grouping: str | None


def split_file(new: NewConfig, num_workers: int) -> Parts:
    """Split a COCO file, by an expression that keeps near-duplicates together where none is given.

    Raises:
        InvalidDataset: it is no COCO file, or cannot be split.
        InvalidConfig: the expression to group by is none, or matches no name.
    """
    try:
        re.compile(new.group_by or "")
    except re.error as error:
        raise InvalidConfig(f"--group-by {new.group_by!r} is no expression: {error}") from error
    document = read_document(new.instances)
    names, group_by, grouping = list(file_names(document).values()), new.group_by, None
    if group_by is None:
        alike = find_near_duplicates(names, new.images, VAL_SHARE, num_workers)
        if alike.is_clear:
            group_by, grouping = alike.group_by, str(alike)
    else:
        grouping = _part_matched(group_by, names)
    pattern = re.compile(group_by) if group_by else None
    try:
        parts = split_document(document, pattern, VAL_SHARE)
    except InvalidDataset as error:
        raise InvalidDataset(f"{new.instances}: {error}") from error
    texts = {name: json.dumps(part) for name, part in zip(_SPLITS, parts, strict=True)}
    return Parts(texts, group_by, grouping)


def _part_matched(expression: str, names: Sequence[str]) -> str | None:
    """What a user should know of an expression that does not match all names."""
    count = sum(bool(matched(name, re.compile(expression))) for name in names)
    if names and not count:
        raise InvalidConfig(
            f"--group-by {expression!r} matches no file name, such as {names[0]}: correct it, or leave it out"
        )
    told = f"--group-by {expression!r} matches {count} of {len(names)} names: the others are each for itself"
    return told if count < len(names) else None


def _ways_out(said: str, splits: Iterable[SplitConfig]) -> Iterator[str]:
    if FILE_MISSING not in said:
        return
    names = [
        (split.images, name)
        for split in splits
        for path in split.instance_files
        for name in image_names(path, DigestMemory())
    ]
    other = (file_of_other_case(folder / name) for folder, name in names)
    above = (folder.parent for folder, name in names if (folder.parent / name).is_file())
    if OTHER_CASE in said and (file := next(filter(None, other), None)):
        yield f"write names as the files have them, such as {file.name}"
    elif parent := next(above, None):
        yield f"try --images {parent}"
    else:
        yield "give as --images the folder that its file names are relative to"


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - NUM_EXAMPLES} more"] if len(names) > NUM_EXAMPLES else []
    return ", ".join([*names[:NUM_EXAMPLES], *more])
