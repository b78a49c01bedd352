"""From COCO files to Parquet tables, with an account of everything that was refused."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from data.coco.export import export_boxes
from data.coco.records import map_spans, open_index
from data.coco.stream import CocoIndex
from data.errors import InvalidDataset
from data.ingest.annotations import AnnotationContext, ObjectRows, object_rows
from data.ingest.box_forms import BoxForms
from data.ingest.category_table import CategoryTable
from data.ingest.groups import write_groups
from data.ingest.id_set import IdSet
from data.ingest.image_checks import SIZE_AFTER_EXIF, AcceptedImages, ImageContext, ImageReader
from data.ingest.image_progress import ImageProgress
from data.ingest.options import IngestConfig, ScenesConfig, SplitConfig
from data.ingest.panoptic import PanopticContext, panoptic_rows
from data.ingest.refusals import Refusals, reasons
from data.ingest.shared_images import shared_images
from data.ingest.table_writer import TableWriter
from data.ingest.tiles import cut_images, write_tiles
from data.progress import Progress, silent
from data.scenes.writing import write_scenes
from data.vocabulary.images import SIZE_BEFORE_EXIF
from data.vocabulary.splits import Split, split_folder
from data.vocabulary.tables import IMAGES, OBJECTS, REFUSED, Dataset, write_table
from data.workers import Workers


def ingest(
    config: IngestConfig, out: Path, num_workers: int = 1, on_progress: Progress = silent
) -> dict[str, Any]:
    """Read a data set and write its tables to `out`; where it is refused, nothing is written.

    Writes `images.parquet`, `objects.parquet`, `categories.parquet`, `refused.parquet`
    and `instances_{split}.json`; for Scenes the data set itself under `scenes/`. With `config.tile` these
    are of tiles, see `Dataset`, and with `config.group_by` there is `groups.parquet`.

    Args:
        on_progress: told of the images.

    Returns:
        Counts by split, the refusals by reason and warnings.

    Raises:
        InvalidDataset: a file is not COCO format, a split is empty, its boxes are not in pixels, the
            splits have no category in common, something is broken and the policy is `strict`, or tiles
            leave no object.
        InvalidConfig: a tile is as large as all images, or no file name is matched by what they are to be
            grouped by.
    """
    splits = config.splits or _make_scenes(config.scenes, out, num_workers, on_progress)
    of_files = on_progress if config.splits else silent  # all images of Scenes are there
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=".ingest-") as folder:
        tables = Path(folder) / "tables"
        tables.mkdir()
        summary = write_tables(config, splits, tables, num_workers, of_files)
        if config.tile:
            whole, tables = tables, Path(folder) / "of tiles"
            tables.mkdir()
            tiled = write_tiles(config.tile, splits, whole, tables, num_workers)
            more = {name: [*summary[name], *tiled[name]] for name in ("refused", "warnings")}
            summary |= tiled | more
            export_boxes(whole, "val", Dataset(tables).whole_instances_file)
            folders = {name: split.images for name, split in splits.items()}
            cut_images(tables, folders, out, num_workers, on_progress)
        if config.group_by:
            write_groups(tables, re.compile(config.group_by))
        for name in splits:
            export_boxes(tables, name, tables / f"instances_{name}.json", num_workers)
        out.mkdir(exist_ok=True)
        for path in tables.iterdir():
            path.replace(out / path.name)
    config.note_places(out)
    return summary


def write_tables(
    config: IngestConfig,
    splits: Mapping[Split, SplitConfig],
    folder: Path,
    num_workers: int = 1,
    on_progress: Progress = silent,
) -> dict[str, Any]:
    """Write `images.parquet`, `objects.parquet`, `categories.parquet` and `refused.parquet`.

    Args:
        config: for its policy and what is to be read.
        folder: of the tables; exists, and holds unfinished files after an error.

    Returns:
        Counts by split, the refusals by reason and warnings.

    Raises:
        InvalidDataset: as `ingest`.
    """
    for split in splits.values():
        split.require_paths()
    with TableWriter(folder / "refused.parquet", REFUSED) as refused:
        refusals = Refusals(refused)
        return _Ingestion(config, folder, refusals, num_workers, on_progress).read(splits)


def _make_scenes(
    config: ScenesConfig, out: Path, num_workers: int, on_progress: Progress
) -> dict[Split, SplitConfig]:
    root = out / "scenes"
    options = config.model_dump(exclude={"num_unlabelled"})
    write_scenes(root, **options, num_workers=num_workers, on_progress=on_progress)

    def split(name: Split) -> SplitConfig:
        folder = root / "annotations"
        return SplitConfig(
            instances=folder / f"instances_{name}.json",
            stuff=folder / f"stuff_{name}.json",
            images=out / split_folder(name),
        )

    names: list[Split] = ["train", "val"]
    if config.num_spare:
        names.append("spare")
    return {name: split(name) for name in names}


@dataclass(frozen=True, slots=True)
class _File:
    """A JSON file, and the folder of the pictures that its records name."""

    index: CocoIndex
    kind: Literal["things", "stuff", "panoptic"]
    folder: Path


def _open(split: SplitConfig) -> list[_File]:
    panoptic = [split.panoptic] if split.panoptic else []
    return [
        *(_File(open_index(path), "things", split.images) for path in split.instance_files),
        *(_File(open_index(path), "stuff", split.images) for path in split.stuff_files),
        *(_File(open_index(path), "panoptic", split.png_folder) for path in panoptic),
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
        self._warnings: list[str] = []
        self._num_read: Counter[Split] = Counter()

    def read(self, splits: Mapping[Split, SplitConfig]) -> dict[str, Any]:
        """Write the tables; returns counts, refusals and warnings."""
        indices = {name: _open(split) for name, split in splits.items()}
        for items in indices.values():  # where no image is looked at, all takes seconds
            if self._config.check_images:
                self._progress.expect(item.index for item in items)
            self._progress.expect(item.index for item in items if item.kind == "panoptic")
        counts: dict[Split, Counter[str]] = {name: Counter() for name in splits}
        with (
            TableWriter(self._folder / "images.parquet", IMAGES) as images,
            TableWriter(self._folder / "objects.parquet", OBJECTS) as objects,
        ):
            for name, items in indices.items():
                self._read_split(name, splits[name].images, items, images, objects, counts[name])
                images.flush()
                objects.flush()
        self._check(counts)
        self._warnings += self._other_frame()
        self._warnings += self._categories.warnings()
        folders = {name: split.images for name, split in splits.items()}
        self._warnings += shared_images(self._folder / "images.parquet", folders)
        write_table(self._categories.table(), self._folder / "categories.parquet")
        return {
            "counts": {name: dict(count) for name, count in counts.items()},
            "refused": self._refusals.rows(),
            "categories": len(self._categories),
            "warnings": self._warnings,
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
        accepted = self._read_images(split, folder, files, images, count)
        seen = {True: IdSet(), False: IdSet()}
        for file in files:
            is_thing = file.kind == "things"
            known, things = self._categories.add(file.index, split, is_thing=is_thing)
            against = AnnotationContext(split, is_thing, accepted, known, self._config.masks)
            forms = BoxForms(f"{file.kind} of split {split}")
            for found in self._rows(file, against, things):
                forms.add(found)
                batch = self._unique(found, seen[is_thing], split)
                objects.write(batch)
                count["things" if is_thing else "stuff"] += batch.num_rows
                if is_thing:
                    self._num_read[split] += found.batch.num_rows + len(found.offences)
                    count["crowds"] += pc.sum(batch["is_crowd"]).as_py() or 0
                if file.kind == "panoptic":
                    self._progress.advance(pc.count_distinct(batch["image_id"]).as_py())
            forms.require_pixels(accepted.sizes)
            self._warnings += forms.warnings()

    def _rows(
        self, file: _File, against: AnnotationContext, things: frozenset[int]
    ) -> Iterator[ObjectRows]:
        index = file.index
        if file.kind == "panoptic":
            context = PanopticContext(against, things, file.folder.absolute())
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
    ) -> AcceptedImages:
        """Write the images of a split; returns all that later checks need of them."""
        root = Path(os.path.abspath(folder))  # noqa: PTH100  # links in it stay as they are
        context = ImageContext(split, root, self._config.check_images, self._config.exif)
        reader = ImageReader(context, self._refusals)
        with Workers(context, self._num_workers if context.look else 1) as workers:
            for file in files:
                for rows in reader.read(file.index, workers):
                    images.write(rows.batch)
                    count["images"] += rows.batch.num_rows
                    self._progress.advance(rows.num_records)
        if reader.num_dark:
            self._warnings.append(
                f"{reader.num_dark} images of split {split} use the lowest 12 of 16 bits and are seen nearly "
                "black: stretch them"
            )
        return reader.accepted()

    def _unique(self, rows: ObjectRows, seen: IdSet, split: Split) -> pa.RecordBatch:
        self._refusals.add_all(rows.offences)
        ids = rows.batch["object_id"].to_numpy()
        is_new = seen.add(ids)
        if is_new.all():
            return rows.batch
        self._refusals.add("duplicate annotation id", *(f"{split}/{key}" for key in ids[~is_new]))
        return rows.batch.filter(pa.array(is_new))

    def _check(self, counts: dict[Split, Counter[str]]) -> None:
        if self._config.policy == "strict" and self._refusals.total:
            raise InvalidDataset(
                f"{self._refusals.total} broken records and policy strict: {self._refusals}"
            )
        for split, count in counts.items():
            if why := self._why_unusable(split, count):
                told = "; ".join([why, *reasons(self._refusals.rows()), *self._other_frame()])
                raise InvalidDataset(f"split {split} has {told}")
        self._categories.check_common()

    def _other_frame(self) -> Iterator[str]:
        """How images are read whose size is that of the other frame than `exif` says."""
        for reason, frame in ((SIZE_BEFORE_EXIF, "stored"), (SIZE_AFTER_EXIF, "shown")):
            if count := self._refusals.count(reason):
                yield (
                    f'{count} images are annotated as they are {frame}: ingest.exif = "{frame}" reads all '
                    "annotations so"
                )

    def _why_unusable(self, split: Split, count: Counter[str]) -> str | None:
        if not count["images"]:
            return "no usable image"
        if count["things"] > count["crowds"]:
            return None
        if count["crowds"]:
            return f"no usable object; all {count['crowds']} annotations are crowds"
        return f"no usable object{'' if self._num_read[split] else '; no annotations'}"
