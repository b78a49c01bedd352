"""Options for a data set of a user's, written as a TOML file that says why they are as they are."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.compute as pc

from data.coco.splitting import read_document, split_document
from data.errors import InvalidConfig, InvalidDataset
from data.ingest.ingestion import write_tables
from data.ingest.options import IngestConfig, SplitConfig, TileConfig
from data.ingest.refusals import NUM_EXAMPLES, reasons
from data.ingest.survey import (
    SMALL_SIDE,
    Survey,
    fitting_resolution,
    fitting_sides,
    fitting_tile,
    survey,
)
from data.ingest.tiles import write_tiles
from data.vocabulary.images import SIZE_BEFORE_EXIF, is_turned
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset
from flows.run_config import RunConfig, build_run

PRESET = "fine-tune"
"""That the options are chosen for."""

_VAL_SHARE = 0.2
_MOST = 0.9
"""Share of the images of which no layout is left out for its number of objects."""

_PROMPT_OBJECTS = 18
"""That fit a prompt of 77 tokens: five for its start and end, four for an object whose name is one."""

_FEW_IMAGES = 1000
"""Under which a detector knows what it was trained on nearly by heart: docs/measured.md."""

_NUM_FOLDS = 3
_WIDTH = 110
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
class _Found:
    """What a data set turned out to be.

    Attributes:
        whole: its images by split.
        shown: what is trained on and drawn: these, or tiles of them.
        tile: how they are cut.
        classes: id to name.
        refused: what was left out or mended, by reason.
        turned: names of files that EXIF turns or mirrors.
    """

    whole: Mapping[Split, Survey]
    shown: Mapping[Split, Survey]
    tile: TileConfig | None
    classes: Mapping[int, str]
    refused: Sequence[str]
    turned: Sequence[str]

    @property
    def has_masks(self) -> bool:
        """Whether any object has one."""
        return any(item.num_masks for item in self.whole.values())

    @property
    def max_objects(self) -> int:
        """Of a layout: more has one in ten of those that have some, in either split."""
        return max(item.most_objects(_MOST) for item in self.shown.values())

    def without(self, split: Split) -> str:
        """Names of the classes that have no object in a split."""
        ids = set(self.classes) - self.whole[split].category_ids
        return _some(sorted(self.classes[item] for item in ids))

    def notes(self) -> Iterator[str]:
        """What a user should know."""
        counts = {name: len(item.image_sizes) for name, item in self.whole.items()}
        num_objects = sum(len(item.object_sides) for item in self.whole.values())
        yield (
            f"{counts['train']} images to train on and {counts['val']} to validate on, "
            f"{len(self.classes)} classes, {num_objects} objects"
        )
        yield from self.refused
        if self.turned:
            yield (
                f"EXIF turns or mirrors {len(self.turned)} images ({_some(self.turned)}): boxes are taken "
                "to be of an image as it is shown"
            )
        for split, what in zip(_SPLITS, ("learnt", "measured"), strict=True):
            if names := self.without(split):
                yield f"no {split} object, so cannot be {what}: {names}"
        if not self.has_masks:
            yield "no object has a mask: its box stands for it"


def write_config(new: NewConfig, num_workers: int) -> list[str]:
    """Look at a data set, split it if it is one file, and write its options.

    Returns:
        What a user should know of it.

    Raises:
        InvalidDataset: it has no usable image or object, or cannot be split.
        InvalidConfig: a file is there already, cannot be written, the expression is none, or an option
            has no effect beside the others.
    """
    if new.val and new.group_by:
        raise InvalidConfig(
            "--group-by says how images are split, but --val is given: leave one out"
        )
    if new.val_images and not new.val:
        raise InvalidConfig("--val-images needs --val, the COCO file of these images")
    _require_free(new)
    texts = {} if new.val else _split_texts(new)
    with TemporaryDirectory() as folder:
        sources = new.splits
        for name, text in texts.items():
            path = Path(folder, f"{name}.json")
            path.write_text(text)
            sources[name] = sources[name].model_copy(update={"instances": path})
        found = _look(sources, Path(folder), num_workers)
    files = {new.splits[name].instance_files[0]: text for name, text in texts.items()}
    files[new.out] = "\n".join([*_lines(new, found), ""])
    try:
        new.out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text)
    except OSError as error:
        raise InvalidConfig(
            f"--out: {error.filename} cannot be written: {error.strerror}"
        ) from error
    return list(found.notes())


def _require_free(new: NewConfig) -> None:
    for path in filter(Path.exists, new.files):
        given = [item for item in (new.instances, new.val) if item and item.exists()]
        if any(path.samefile(item) for item in given):
            raise InvalidConfig(f"{path} would be written over: give --out in another folder")
        if not new.force:
            raise InvalidConfig(f"{path} is there: give another --out, or --force to replace it")


def _split_texts(new: NewConfig) -> dict[Split, str]:
    try:
        pattern = re.compile(new.group_by) if new.group_by else None
    except re.error as error:
        raise InvalidConfig(f"--group-by {new.group_by!r} is no expression: {error}") from error
    document = read_document(new.instances)
    try:
        parts = split_document(document, pattern, _VAL_SHARE)
    except InvalidDataset as error:
        raise InvalidDataset(f"{new.instances}: {error}") from error
    return {name: json.dumps(part) for name, part in zip(_SPLITS, parts, strict=True)}


def _look(sources: Mapping[Split, SplitConfig], folder: Path, num_workers: int) -> _Found:
    """Read a data set as `ingest` does."""
    tables, cut = folder / "tables", folder / "tiles"
    tables.mkdir()
    try:
        summary = write_tables(IngestConfig(), sources, tables, num_workers)
    except InvalidDataset as error:
        said = str(error).rstrip("; ")
        advice = (
            "correct the file, or give as --images the folder that its file names are relative to"
        )
        if SIZE_BEFORE_EXIF in said:
            advice = "annotate images as they are shown, or drop EXIF's entry from the files"
        raise InvalidDataset(f"{said}: {advice}") from error
    dataset = Dataset(tables)
    whole = {name: survey(dataset, name) for name in sources}
    tile = fitting_tile(whole["train"], fitting_resolution(*whole["train"].median_size))
    shown = whole
    if tile:
        cut.mkdir()
        write_tiles(tile, sources, tables, cut, num_workers)
        shown = {name: survey(Dataset(cut), name) for name in sources}
    refused = reasons(summary["refused"])
    names = [(split, name) for split in sources for name in _file_names(dataset, split)]
    turned = [name for split, name in names if is_turned(sources[split].images / name)]
    return _Found(whole, shown, tile, dataset.things, refused, turned)


def _file_names(dataset: Dataset, split: Split) -> list[str]:
    """Of the accepted images, and of those that were refused because EXIF turns them."""
    accepted = [row["file_name"] for row in dataset.split_images(split)]
    is_meant = pc.field("reason") == SIZE_BEFORE_EXIF
    refused = dataset.refused.filter(is_meant)["record"].to_pylist()
    own = [name.removeprefix(f"{split}/") for name in refused if name.startswith(f"{split}/")]
    return accepted + own


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - NUM_EXAMPLES} more"] if len(names) > NUM_EXAMPLES else []
    return ", ".join([*names[:NUM_EXAMPLES], *more])


def _lines(new: NewConfig, found: _Found) -> Iterator[str]:
    preset = build_run(PRESET, {})
    yield from _comment(
        f"Options for `detdiffusion run {PRESET} --config {new.out}`, over those of the preset. Whether all "
        f"runs, small and short: `detdiffusion run smoke --config {new.out}`. Paths are seen from the folder "
        "of the call."
    )
    for note in found.notes():
        yield from _comment(f"- {note}.")
    yield from _ingest_lines(new, found)
    yield from _layout_lines(found)
    yield from _attribute_lines(found)
    yield from _generator_lines(found, preset)
    yield from _detector_lines(found, preset)


def _ingest_lines(new: NewConfig, found: _Found) -> Iterator[str]:
    yield from ("", "[ingest]")
    if new.val is None:
        together = f"what {new.group_by!r} matches alike stays together" if new.group_by else (
            "each image for itself; frames of a film or crops of a picture belong together: --group-by"
        )  # fmt: skip
        yield from _comment(
            f"{new.instances} was split by digests of names, {_VAL_SHARE:.0%} for validation: {together}."
        )
    for name, split in new.splits.items():
        files = f"instances = {_text(split.instance_files[0])}, images = {_text(split.images)}"
        yield f"{name} = {{ {files} }}"
    if not found.has_masks:
        yield 'masks = "none"'
    width, height = found.whole["train"].median_size
    resolution = fitting_resolution(width, height)
    side = float(np.median(found.whole["train"].object_shares)) * resolution
    rule = (
        f"Squashed to {resolution} pixels, images of {width} × {height} (median) show half of the objects "
        f"with less than {side:.0f} pixels of side; tiles are for less than {SMALL_SIDE}"
    )
    if found.tile is None:
        yield from _comment(f"{rule}, in images larger than eight such objects: none here.")
    else:
        yield from _comment(f"{rule}, and are as large as eight such objects.")
        yield f"tile = {{ size = {found.tile.size}, overlap = {found.tile.overlap:g} }}"


def _layout_lines(found: _Found) -> Iterator[str]:
    counts = found.shown["train"].objects_per_image
    tenth, half, most = (int(np.quantile(counts, share)) for share in (0.1, 0.5, _MOST))
    yield from ("", "[layouts]")
    yield from _comment(
        f"Objects {'a tile' if found.tile else 'an image'}: {tenth} (a tenth have no more), {half} (half), "
        f"{most} (nine tenths), at most {counts.max()}. The generator learns and draws layouts up to:"
    )
    yield f"max_objects = {found.max_objects}"
    if found.max_objects > _PROMPT_OBJECTS:
        yield from _comment(
            f"A prompt has room for {_PROMPT_OBJECTS} at most, the largest: a smaller number, or smaller "
            "tiles, leave fewer things unnamed."
        )


def _attribute_lines(found: _Found) -> Iterator[str]:
    count = len(found.whole["train"].objects_per_image)
    if not _NUM_FOLDS <= count < _FEW_IMAGES:
        return
    yield from ("", "[extract_attributes.scoring]")
    yield from _comment(
        f"A detector knows {count} images that it learnt from nearly by heart, and finds hardly any of their "
        "things hard. Each is scored by one that did not see it."
    )
    yield f"num_folds = {_NUM_FOLDS}"


def _generator_lines(found: _Found, preset: RunConfig) -> Iterator[str]:
    generator, counts = preset.train_generator, found.shown["train"].objects_per_image
    num_layouts = int(((counts > 0) & (counts <= found.max_objects)).sum())
    steps = generator.in_steps(num_layouts).num_steps
    width, height = _size(found)
    resolution = fitting_resolution(width, height)
    yield from ("", "[train_generator]")
    yield from _comment(
        "base_model: a folder of Stable Diffusion v1.5, here or by --set; `smoke` keeps its own tiny one."
    )
    yield '# base_model = "stable-diffusion-v1-5"'
    yield from _comment(
        f"num_epochs: the preset's {generator.num_epochs:g} are {steps} steps of {generator.batch_size}, of "
        f"{num_layouts} layouts."
    )
    yield from _comment(f"Of 256 and 512, the side nearer to {width} × {height} pixels (median).")
    yield f"{'' if resolution != generator.resolution else '# '}resolution = {resolution}"


def _detector_lines(found: _Found, preset: RunConfig) -> Iterator[str]:
    width, height = _size(found)
    sides = fitting_sides(width, height, preset.train_detector.image_size)
    if sides == preset.train_detector.image_size:
        return
    for name in ("train_detector", "retrain.detector"):
        yield from ("", f"[{name}]")
        yield from _comment(f"Twice {width} × {height} pixels (median), which keeps small objects.")
        yield f"image_size = {list(sides)}"


def _size(found: _Found) -> tuple[int, int]:
    """Width and height of what is trained on, medians."""
    return found.shown["train"].median_size


def _comment(text: str) -> list[str]:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(printable, _WIDTH, initial_indent="# ", subsequent_indent="#   ")


def _text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
