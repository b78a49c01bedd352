"""From COCO files to Parquet tables, with an account of everything that was refused."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from data.annotations import AnnotationContext, MaskMode, ObjectRows, object_rows
from data.category_table import CategoryTable
from data.coco_export import export_boxes
from data.coco_records import map_spans, open_index
from data.coco_stream import CocoIndex
from data.errors import InvalidDataset
from data.id_set import IdSet
from data.image_checks import ImageContext, ImageReader
from data.image_progress import ImageProgress
from data.panoptic import PanopticContext, panoptic_rows, png_folder
from data.refusals import Refusals
from data.scenes import write_scenes
from data.store import digest_file, folder_digest
from data.table_writer import TableWriter
from data.tables import IMAGES, OBJECTS, REFUSED, Split, write_table
from data.workers import Workers

Progress = Callable[[int, int], None]


class SplitConfig(BaseModel):
    """Where one split of a COCO-format data set lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: Path | tuple[Path, ...] = Field(description="COCO instances JSON, one or several.")
    images: Path = Field(description="Folder that file names are relative to.")
    stuff: Path | tuple[Path, ...] | None = Field(
        None, description="COCO stuff JSON, one or several; optional."
    )
    panoptic: Path | None = Field(
        None,
        description="COCO panoptic JSON whose stuff is read; its PNGs lie beside it, in a folder of "
        "its name. Optional.",
    )

    @property
    def instance_files(self) -> tuple[Path, ...]:
        """Files of things."""
        return self.instances if isinstance(self.instances, tuple) else (self.instances,)

    @property
    def stuff_files(self) -> tuple[Path, ...]:
        """Files of stuff."""
        return self.stuff if isinstance(self.stuff, tuple) else tuple(filter(None, [self.stuff]))

    @property
    def files(self) -> tuple[Path, ...]:
        """All JSON files."""
        panoptic = (self.panoptic,) if self.panoptic else ()
        return (*self.instance_files, *self.stuff_files, *panoptic)

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders of images."""
        return (self.images, *([png_folder(self.panoptic)] if self.panoptic else []))


class ScenesConfig(BaseModel):
    """The embedded data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_train: int = Field(3500, ge=1)
    num_val: int = Field(500, ge=1)
    size: int = Field(64, ge=32, description="Image side, pixels.")
    seed: int = 0


class IngestConfig(BaseModel):
    """A COCO-format data set, or the embedded Scenes where no split is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: SplitConfig | None = None
    val: SplitConfig | None = None
    scenes: ScenesConfig = ScenesConfig()
    policy: Literal["report", "strict"] = Field(
        "report",
        description="Leave broken records out and account for them, or refuse the data set.",
    )
    masks: MaskMode = Field(
        "rle", description="Encode masks, or go without them, which is several times faster."
    )
    check_images: bool = Field(
        True, description="Look at every image file; off: believe what the JSON says of them."
    )


def source_digest(config: IngestConfig) -> str:
    """Digest of the user's files: content of the JSON files, names and sizes of the images.

    Raises:
        InvalidDataset: only one split is given, or a path does not exist.
    """
    if (config.train is None) != (config.val is None):
        missing = "val" if config.val is None else "train"
        raise InvalidDataset(
            f"ingest.{missing} is missing: give ingest.{missing}.instances and ingest.{missing}.images"
        )
    digest = hashlib.sha256()
    try:
        for split in filter(None, (config.train, config.val)):
            _require_paths(split)
            for path in split.files:
                digest.update(digest_file(path).sha256.encode())
            for folder in split.folders:
                digest.update(folder_digest(folder).encode())
    except OSError as error:
        raise InvalidDataset(f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _require_paths(split: SplitConfig) -> None:
    for path in split.files:
        if not path.is_file():
            raise InvalidDataset(
                f"{path} does not exist or is no file: give the path of a COCO JSON"
            )
    for folder in split.folders:
        if not folder.is_dir():
            raise InvalidDataset(
                f"{folder} does not exist or is no folder: images are looked for there"
            )


def ingest(
    config: IngestConfig, out: Path, num_workers: int = 1, on_progress: Progress = lambda a, b: None
) -> dict[str, Any]:
    """Read a data set and write its tables to `out`; where it is refused, nothing is written.

    Writes `images.parquet`, `objects.parquet`, `categories.parquet`, `refused.parquet`, `dataset.json`
    and `instances_{train,val}.json`; for Scenes the data set itself under `scenes/`.

    Args:
        on_progress: called with images done and images in total.

    Returns:
        Counts by split and the refusals by reason.

    Raises:
        InvalidDataset: a file is not COCO format, a split is empty, the splits have no category in
            common, or something is broken and the policy is `strict`.
    """
    splits = _user_splits(config) or _make_scenes(config.scenes, out, num_workers, on_progress)
    if config.train is None:
        on_progress = _silent  # all images are there
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".ingest-") as folder:
        tables = Path(folder)
        summary = write_tables(config, splits, tables, num_workers, on_progress)
        for name in splits:
            export_boxes(tables, name, tables / f"instances_{name}.json", num_workers)
        folders = {name: _stored_folder(split.images, out) for name, split in splits.items()}
        (tables / "dataset.json").write_text(json.dumps({"image_folders": folders}))
        out.mkdir(exist_ok=True)
        for path in tables.iterdir():
            path.replace(out / path.name)
    return summary


def write_tables(
    config: IngestConfig,
    splits: Mapping[Split, SplitConfig],
    folder: Path,
    num_workers: int = 1,
    on_progress: Progress = lambda a, b: None,
) -> dict[str, Any]:
    """Write `images.parquet`, `objects.parquet`, `categories.parquet` and `refused.parquet`.

    Args:
        config: for its policy and what is to be read.
        folder: of the tables; exists, and holds unfinished files after an error.

    Returns:
        Counts by split and the refusals by reason.

    Raises:
        InvalidDataset: as `ingest`.
    """
    for split in splits.values():
        _require_paths(split)
    with TableWriter(folder / "refused.parquet", REFUSED) as refused:
        refusals = Refusals(refused)
        return _Ingestion(config, folder, refusals, num_workers, on_progress).read(splits)


def _silent(done: int, total: int) -> None:
    pass


def _user_splits(config: IngestConfig) -> dict[Split, SplitConfig]:
    if config.train is None or config.val is None:
        return {}
    return {"train": config.train, "val": config.val}


def _make_scenes(
    config: ScenesConfig, out: Path, num_workers: int, on_progress: Progress
) -> dict[Split, SplitConfig]:
    root = out / "scenes"
    write_scenes(root, **config.model_dump(), num_workers=num_workers, on_progress=on_progress)

    def split(name: Split) -> SplitConfig:
        folder = root / "annotations"
        return SplitConfig(
            instances=folder / f"instances_{name}.json",
            stuff=folder / f"stuff_{name}.json",
            images=root / name,
        )

    return {"train": split("train"), "val": split("val")}


def _stored_folder(images: Path, out: Path) -> str:
    """Relative where the images move with the artifact."""
    return str(images.relative_to(out) if images.is_relative_to(out) else images.resolve())


@dataclass(frozen=True, slots=True)
class _File:
    index: CocoIndex
    kind: Literal["things", "stuff", "panoptic"]


def _open(split: SplitConfig) -> list[_File]:
    panoptic = [split.panoptic] if split.panoptic else []
    return [
        *(_File(open_index(path), "things") for path in split.instance_files),
        *(_File(open_index(path), "stuff") for path in split.stuff_files),
        *(_File(open_index(path), "panoptic") for path in panoptic),
    ]


class _Ingestion:
    """One run over the files of a data set: what is known so far, and the tables being written."""

    def __init__(
        self,
        config: IngestConfig,
        folder: Path,
        refusals: Refusals,
        num_workers: int,
        on_progress: Progress,
    ):
        self._folder = folder
        self._config = config
        self._num_workers = num_workers
        self._progress = ImageProgress(on_progress)
        self._refusals = refusals
        self._categories = CategoryTable(self._refusals)

    def read(self, splits: Mapping[Split, SplitConfig]) -> dict[str, Any]:
        """Write the tables; returns counts and refusals."""
        indices = {name: _open(split) for name, split in splits.items()}
        for items in indices.values():  # where no image is looked at, all takes seconds
            if self._config.check_images:
                self._progress.expect(item.index for item in items)
            self._progress.expect(item.index for item in items if item.kind == "panoptic")
        counts: dict[str, Counter[str]] = {name: Counter() for name in splits}
        with (
            TableWriter(self._folder / "images.parquet", IMAGES) as images,
            TableWriter(self._folder / "objects.parquet", OBJECTS) as objects,
        ):
            for name, items in indices.items():
                self._read_split(name, splits[name].images, items, images, objects, counts[name])
                images.flush()
                objects.flush()
        self._check(counts)
        write_table(self._categories.table(), self._folder / "categories.parquet")
        return {
            "counts": {name: dict(count) for name, count in counts.items()},
            "refused": self._refusals.rows(),
            "categories": len(self._categories),
        }

    def _read_split(
        self,
        split: Split,
        folder: Path,
        files: list[_File],
        images: TableWriter,
        objects: TableWriter,
        count: Counter[str],
    ) -> None:
        count.update(images=0, things=0, crowds=0, stuff=0)
        image_ids, sizes = self._read_images(split, folder, files, images, count)
        seen = {True: IdSet(), False: IdSet()}
        for file in files:
            is_thing = file.kind == "things"
            known, things = self._categories.add(file.index, split, is_thing=is_thing)
            against = AnnotationContext(
                split, is_thing, image_ids, sizes, known, self._config.masks
            )
            for found in self._rows(file, against, things):
                batch = self._unique(found, seen[is_thing], split)
                objects.write(batch)
                count["things" if is_thing else "stuff"] += batch.num_rows
                if is_thing:
                    count["crowds"] += pc.sum(batch["is_crowd"]).as_py() or 0
                if file.kind == "panoptic":
                    self._progress.advance(pc.count_distinct(batch["image_id"]).as_py())

    def _rows(
        self, file: _File, against: AnnotationContext, things: frozenset[int]
    ) -> Iterator[ObjectRows]:
        index = file.index
        if file.kind == "panoptic":
            context = PanopticContext(against, things, png_folder(index.path).absolute())
            with Workers(context, self._num_workers) as workers:
                yield from map_spans(index, "annotations", panoptic_rows, workers)
        else:
            with Workers(against, self._num_workers) as workers:
                yield from map_spans(index, "annotations", object_rows, workers)

    def _read_images(
        self,
        split: Split,
        folder: Path,
        files: list[_File],
        images: TableWriter,
        count: Counter[str],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Write the images of a split; returns their ids and sizes, all that later checks need."""
        root = Path(os.path.abspath(folder))  # noqa: PTH100  # links in it stay as they are
        context = ImageContext(split, root, look=self._config.check_images)
        reader = ImageReader(context, self._refusals)
        with Workers(context, self._num_workers if context.look else 1) as workers:
            for file in files:
                for rows in reader.read(file.index, workers):
                    images.write(rows.batch)
                    count["images"] += rows.batch.num_rows
                    self._progress.advance(rows.num_records)
        return reader.accepted()

    def _unique(self, rows: ObjectRows, seen: IdSet, split: Split) -> pa.RecordBatch:
        self._refusals.add_all(rows.offences)
        ids = rows.batch["object_id"].to_numpy()
        is_new = seen.add(ids)
        if is_new.all():
            return rows.batch
        self._refusals.add("duplicate annotation id", *(f"{split}/{key}" for key in ids[~is_new]))
        return rows.batch.filter(pa.array(is_new))

    def _check(self, counts: dict[str, Counter[str]]) -> None:
        if self._config.policy == "strict" and self._refusals.total:
            raise InvalidDataset(
                f"{self._refusals.total} broken records and policy strict: {self._refusals}"
            )
        for split, count in counts.items():
            if not count["images"]:
                raise InvalidDataset(f"split {split} has no usable image; {self._refusals}")
            if count["things"] <= count["crowds"]:
                raise InvalidDataset(f"split {split} has no usable object; {self._refusals}")
        self._categories.check_common()
