"""From COCO files to Parquet tables, with an account of everything that was refused."""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from data.boxes import xyxy_to_xywh
from data.coco import CocoAnnotation, CocoFile, CocoImage, read_coco, write_coco
from data.errors import InvalidDataset
from data.images import image_size
from data.masks import segmentation_to_counts
from data.scenes import write_scenes
from data.store import digest_file, folder_digest
from data.tables import CATEGORIES, IMAGES, OBJECTS, Split, box_array, write_table

Progress = Callable[[int, int], None]


class SplitConfig(BaseModel):
    """Where one split of a COCO-format data set lies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: Path = Field(description="COCO instances JSON.")
    images: Path = Field(description="Folder that file names are relative to.")
    stuff: Path | None = Field(None, description="COCO stuff JSON; optional.")


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


@dataclass(slots=True)
class Refusals:
    """What was left out: reason to the ids concerned."""

    by_reason: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, item: str) -> None:
        """Account for one record."""
        self.by_reason[reason].append(item)

    def rows(self, num_examples: int = 5) -> list[dict[str, Any]]:
        """One row per reason: count and the first offenders."""
        return [
            {"reason": reason, "count": len(items), "first": ", ".join(items[:num_examples])}
            for reason, items in self.by_reason.items()
        ]

    @property
    def total(self) -> int:
        """Number of records left out."""
        return sum(map(len, self.by_reason.values()))


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
            for path in filter(None, (split.instances, split.stuff)):
                digest.update(digest_file(path).sha256.encode())
            digest.update(folder_digest(split.images).encode())
    except OSError as error:
        raise InvalidDataset(f"{error.filename} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _require_paths(split: SplitConfig) -> None:
    for path in filter(None, (split.instances, split.stuff)):
        if not path.is_file():
            raise InvalidDataset(
                f"{path} does not exist or is no file: give the path of a COCO JSON"
            )
    if not split.images.is_dir():
        raise InvalidDataset(
            f"{split.images} does not exist or is no folder: give the image folder"
        )


def ingest(
    config: IngestConfig, out: Path, num_workers: int = 1, on_progress: Progress = lambda a, b: None
) -> dict[str, Any]:
    """Read a data set and write its tables to `out`.

    Writes `images.parquet`, `objects.parquet`, `categories.parquet`, `refused.json`, `dataset.json`
    and `instances_{train,val}.json`; for Scenes the data set itself under `scenes/`.

    Returns:
        Counts by split and the refusals by reason.

    Raises:
        InvalidDataset: a file is not COCO format, a split is empty, or something is broken and the
            policy is `strict`.
    """
    out.mkdir(parents=True, exist_ok=True)
    splits = _user_splits(config) or _make_scenes(config.scenes, out, num_workers, on_progress)
    refusals = Refusals()
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    categories: dict[int, dict[str, Any]] = {}
    for name, split in splits.items():
        things = read_coco(split.instances)
        stuff = read_coco(split.stuff) if split.stuff else None
        kept = list(_accepted_images(things, split, name, refusals))
        sizes = {image.id: (image.height, image.width) for image in kept}
        if not kept:
            raise InvalidDataset(
                f"{split.instances}: no usable image in {split.images}; {refusals.rows()}"
            )
        images += [_image_row(name, image) for image in kept]
        for is_thing, file in ((True, things), (False, stuff)):
            if file is None:
                continue
            _add_categories(categories, file, is_thing=is_thing, path=split.instances)
            objects += _accepted_objects(file, sizes, name, is_thing=is_thing, refusals=refusals)
    if config.policy == "strict" and refusals.total:
        raise InvalidDataset(
            f"{refusals.total} broken records and policy strict: {refusals.rows()}"
        )
    return _write(out, splits, images, objects, categories, refusals)


def _user_splits(config: IngestConfig) -> dict[Split, SplitConfig]:
    if config.train is None or config.val is None:
        return {}
    _require_paths(config.train)
    _require_paths(config.val)
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


def _accepted_images(
    file: CocoFile, split: SplitConfig, name: str, refusals: Refusals
) -> Iterator[CocoImage]:
    seen: set[int] = set()
    root = split.images.resolve()
    for image in file.images:
        path = Path(
            os.path.normpath(root / image.file_name)
        )  # links in the folder may lead out of it
        if image.id in seen:
            refusals.add("duplicate image id", f"{name}/{image.id}")
        elif image.width <= 0 or image.height <= 0:
            refusals.add("image without area", f"{name}/{image.id}")
        elif not path.is_relative_to(root):
            refusals.add("file name leaves the image folder", f"{name}/{image.file_name}")
        elif not path.is_file():
            refusals.add("image file missing", f"{name}/{image.file_name}")
        elif (size := image_size(path)) is None:
            refusals.add("image file unreadable", f"{name}/{image.file_name}")
        elif size != (image.width, image.height):
            refusals.add("size differs from the image file's", f"{name}/{image.file_name}")
        else:
            seen.add(image.id)
            yield image


def _image_row(split: str, image: CocoImage) -> dict[str, Any]:
    return {
        "split": split,
        "image_id": image.id,
        "file_name": image.file_name,
        "width": image.width,
        "height": image.height,
    }


def _add_categories(
    rows: dict[int, dict[str, Any]], file: CocoFile, *, is_thing: bool, path: Path
) -> None:
    """Add a file's categories; the same id must mean the same in every file."""
    for item in file.categories:
        row = {
            "category_id": item.id,
            "name": item.name,
            "supercategory": item.supercategory,
            "is_thing": is_thing,
        }
        known = rows.setdefault(item.id, row)
        if (known["name"], known["is_thing"]) != (item.name, is_thing):
            kind = "thing" if known["is_thing"] else "stuff"
            raise InvalidDataset(
                f"{path}: category {item.id} is {item.name!r} here and the {kind} {known['name']!r} "
                "in another file of the data set"
            )


def _accepted_objects(
    file: CocoFile,
    sizes: dict[int, tuple[int, int]],
    split: str,
    *,
    is_thing: bool,
    refusals: Refusals,
) -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    known = {item.id for item in file.categories}
    for item in file.annotations:
        label = f"{split}/{item.id}"
        if item.id in seen:
            refusals.add("duplicate annotation id", label)
            continue
        if item.category_id not in known:
            refusals.add("unknown category", label)
            continue
        if item.image_id not in sizes:
            refusals.add("unknown or refused image", label)
            continue
        height, width = sizes[item.image_id]
        box = _clipped_box(item, height, width)
        if box is None:
            refusals.add("box without area inside the image", label)
            continue
        seen.add(item.id)
        yield {
            "split": split,
            "object_id": item.id,
            "image_id": item.image_id,
            "category_id": item.category_id,
            "is_thing": is_thing,
            "is_crowd": bool(item.iscrowd),
            **dict(zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True)),
            "area": (box[2] - box[0]) * (box[3] - box[1]) if item.area is None else item.area,
            "mask": _mask(item, height, width, label, refusals),
            "difficulty": _raw_or_none(item.difficulty),
        }


def _clipped_box(item: CocoAnnotation, height: int, width: int) -> tuple[float, ...] | None:
    left, top, box_width, box_height = item.bbox
    if not np.isfinite(item.bbox).all():
        return None
    box = (max(left, 0), max(top, 0), min(left + box_width, width), min(top + box_height, height))
    return tuple(map(float, box)) if box[2] > box[0] and box[3] > box[1] else None


def _raw_or_none(raw: msgspec.Raw) -> str | None:
    text = bytes(raw).decode()
    return None if text == "null" else text


def _mask(
    item: CocoAnnotation, height: int, width: int, label: str, refusals: Refusals
) -> str | None:
    """RLE counts, or None for a box-only object; a broken mask is accounted for and left out."""
    segmentation = msgspec.json.decode(item.segmentation)
    if not segmentation:
        return None
    try:
        return segmentation_to_counts(segmentation, height, width)
    except (ValueError, TypeError):
        refusals.add("broken mask (box kept)", label)
        return None


def _write(
    out: Path,
    splits: dict[Split, SplitConfig],
    images: list[dict[str, Any]],
    objects: list[dict[str, Any]],
    categories: dict[int, dict[str, Any]],
    refusals: Refusals,
) -> dict[str, Any]:
    image_table = pa.Table.from_pylist(images, schema=IMAGES)
    object_table = pa.Table.from_pylist(objects, schema=OBJECTS)
    write_table(image_table, out / "images.parquet")
    write_table(object_table, out / "objects.parquet")
    write_table(
        pa.Table.from_pylist(list(categories.values()), schema=CATEGORIES),
        out / "categories.parquet",
    )
    (out / "refused.json").write_text(json.dumps(refusals.by_reason, indent=1))
    folders = {
        name: str(split.images.relative_to(out))
        if split.images.is_relative_to(out)
        else str(split.images.resolve())
        for name, split in splits.items()
    }
    (out / "dataset.json").write_text(json.dumps({"image_folders": folders}))
    names = {key: row["name"] for key, row in sorted(categories.items()) if row["is_thing"]}
    counts: dict[str, Any] = {}
    for name in splits:
        things = object_table.filter((pc.field("split") == name) & pc.field("is_thing"))
        stuff = object_table.filter((pc.field("split") == name) & ~pc.field("is_thing"))
        if not pc.any(pc.invert(things["is_crowd"])).as_py():
            raise InvalidDataset(f"split {name} has no usable object; {refusals.rows()}")
        pictures = [row for row in images if row["split"] == name]
        _write_instances(out / f"instances_{name}.json", pictures, things, names)
        counts[name] = {
            "images": len(pictures),
            "things": things.num_rows,
            "crowds": int(pc.sum(things["is_crowd"]).as_py()),
            "stuff": stuff.num_rows,
        }
    return {"counts": counts, "refused": refusals.rows(), "categories": len(categories)}


def _write_instances(
    path: Path, images: list[dict[str, Any]], things: pa.Table, names: dict[int, str]
) -> None:
    boxes_xywh = xyxy_to_xywh(box_array(things)).tolist()
    annotations = [
        {
            "id": row["object_id"],
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": box,
            "area": row["area"],
            "iscrowd": int(row["is_crowd"]),
        }
        for row, box in zip(
            things.select(["object_id", "image_id", "category_id", "area", "is_crowd"]).to_pylist(),
            boxes_xywh,
            strict=True,
        )
    ]
    pictures = [
        {"id": row["image_id"], **{k: row[k] for k in ("file_name", "width", "height")}}
        for row in images
    ]
    write_coco(path, pictures, annotations, names)
