"""Opening an ingested data set and finding one class, against `COCO()` and `getAnnIds`.

python benchmarks/query.py [--scale 0.1] [--rounds 3]
"""

from argparse import Namespace
from collections.abc import Callable

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from contest import Arrays, equal, fastest, instances_file, main, parser
from pycocotools.coco import COCO

from data.ingest.ingestion import write_tables
from data.ingest.options import IngestConfig, SplitConfig

GOAL = 50.0
CATEGORY = 17


def load(given: Namespace) -> Callable[[], Arrays]:
    """`COCO()` and `getAnnIds`."""
    ids = COCO(str(given.folder / given.file)).getAnnIds(catIds=[CATEGORY])
    return lambda: {"id": np.sort(ids)}


def query(given: Namespace) -> Callable[[], Arrays]:
    """The ids of a class from `objects.parquet`."""
    table = pq.read_table(
        given.folder / "objects.parquet",
        columns=["object_id"],
        filters=pc.field("category_id") == CATEGORY,
    )
    ids = table["object_id"].to_numpy()
    return lambda: {"id": np.sort(ids)}


def compare(given: Namespace) -> bool:
    """Print the ratio."""
    path = instances_file(given.folder, given.scale)
    split = SplitConfig(instances=path, images=given.folder)
    config = IngestConfig(train=split, val=split, check_images=False, masks="none")
    write_tables(config, {"train": split}, given.folder, given.workers)
    found = fastest(given, ["load", "query"])
    same = equal(found["query"].arrays, found["load"].arrays)
    ratio = found["load"].seconds / found["query"].seconds
    print(
        f"open and query one class: {ratio:.0f} × COCO() and getAnnIds, goal {GOAL:g}; "
        f"{len(found['load'].arrays['id'])} ids {'equal' if same else 'DIFFERENT'}"
    )
    return same and ratio >= GOAL


if __name__ == "__main__":
    main(parser(__doc__), {"load": load, "query": query}, compare)
