"""Ingesting a COCO-size instances file, Parquet included, against merely loading it with pycocotools.

    python benchmarks/ingest.py [--scale 0.1] [--rounds 3] [--workers 2]

The goal is for tables of boxes, which hold all that `COCO()` indexes. Drawing 860,000 polygons as
masks costs more than loading them; that work is timed too, against `COCO()` alone and against
`COCO()` drawing the same masks.
"""

import hashlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from contest import Arrays, equal, fastest, instances_file, main, parser
from pycocotools.coco import COCO

from data.ingest.ingestion import ingest, write_tables
from data.ingest.options import IngestConfig, MaskMode, SplitConfig
from data.vocabulary.boxes import xyxy_to_coco
from data.vocabulary.tables import box_array

GOAL = 10.0
_KEYS = ("id", "image_id", "category_id", "area", "iscrowd")
_COLUMNS = ("object_id", "image_id", "category_id", "area", "is_crowd")


def load(given: Namespace) -> Callable[[], Arrays]:
    """`COCO()`, nothing else."""
    coco = COCO(str(given.folder / given.file))
    return lambda: _coco_arrays(coco)


def load_and_draw(given: Namespace) -> Callable[[], Arrays]:
    """`COCO()` and the RLE of every annotation."""
    coco = COCO(str(given.folder / given.file))
    counts = [coco.annToRLE(item)["counts"] for item in coco.dataset["annotations"]]
    return lambda: {**_coco_arrays(coco), "masks": _digests(counts)}


def tables(given: Namespace) -> Callable[[], Arrays]:
    """The tables without masks."""
    return _tables(given, "none")


def tables_with_masks(given: Namespace) -> Callable[[], Arrays]:
    """The tables, masks as RLE."""
    return _tables(given, "rle")


def stage(given: Namespace) -> Callable[[], Arrays]:
    """All that the stage writes: tables without masks, and COCO files for MMDetection."""
    config = _config(given.folder, given.file, "none")
    ingest(config, given.folder / "out", given.workers)
    return lambda: _table_arrays(given.folder / "out", "train")


def _config(folder: Path, file: str, masks: MaskMode) -> IngestConfig:
    instances_file(folder, 0.001, "val.json")
    train = SplitConfig(instances=folder / file, images=folder)
    val = SplitConfig(instances=folder / "val.json", images=folder)
    return IngestConfig(train=train, val=val, masks=masks, check_images=False)


def _tables(given: Namespace, masks: MaskMode) -> Callable[[], Arrays]:
    config = _config(given.folder, given.file, masks)
    assert config.train  # noqa: S101  # for the type checker
    write_tables(config, {"train": config.train}, given.folder, given.workers)
    return lambda: _table_arrays(given.folder, "train")


def _digests(masks: list[bytes]) -> np.ndarray:
    digests = [hashlib.blake2b(counts, digest_size=8).digest() for counts in masks]
    return np.frombuffer(b"".join(digests), np.uint64)


def _coco_arrays(coco: COCO) -> Arrays:
    items = coco.dataset["annotations"]
    boxes = np.array([item["bbox"] for item in items], float)
    return {**{key: np.array([item[key] for item in items]) for key in _KEYS}, "boxes": boxes}


def _table_arrays(folder: Path, split: str) -> Arrays:
    table = pq.read_table(folder / "objects.parquet", filters=[("split", "==", split)])
    arrays = {key: table[name].to_numpy() for key, name in zip(_KEYS, _COLUMNS, strict=True)}
    arrays |= {"boxes": xyxy_to_coco(box_array(table)), "iscrowd": arrays["iscrowd"].astype(int)}
    if table["mask"].null_count < table.num_rows:
        arrays["masks"] = _digests(table["mask"].cast(pa.binary()).to_pylist())
    return arrays


def compare(given: Namespace) -> bool:
    """Print all ratios; the goal's last."""
    instances_file(given.folder, given.scale)
    _config(given.folder, given.file, "none")
    found = fastest(given, ["load", "tables", "stage"])
    given.rounds = 1  # what takes half a minute needs no repetition
    found |= fastest(given, ["load_and_draw", "tables_with_masks"])
    seconds = {name: result.seconds for name, result in found.items()}
    same = equal(found["tables"].arrays, found["load"].arrays)
    same &= equal(found["stage"].arrays, found["load"].arrays)
    same &= equal(found["tables_with_masks"].arrays, found["load_and_draw"].arrays)
    print(f"the whole stage without masks: {seconds['load'] / seconds['stage']:.1f} × COCO()")
    masked = seconds["tables_with_masks"]
    ratio = seconds["load"] / seconds["tables"]
    print(
        f"tables without masks: {ratio:.1f} × COCO(), goal {GOAL:g}; with masks: "
        f"{seconds['load'] / masked:.1f} × COCO(), {seconds['load_and_draw'] / masked:.1f} × COCO() "
        f"drawing them; {len(found['load'].arrays['id'])} annotations "
        f"{'equal' if same else 'DIFFERENT'}"
    )
    return same and ratio >= GOAL


if __name__ == "__main__":
    main(
        parser(__doc__),
        {f.__name__: f for f in (load, load_and_draw, tables, tables_with_masks, stage)},
        compare,
    )
