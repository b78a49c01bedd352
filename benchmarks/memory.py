"""Peak memory of ingesting a COCO-size file and one four times as large, against `COCO()`.

    python benchmarks/memory.py [--scale 0.1] [--workers 2]

Resident memory of the process and its workers together, pages that they share counted each time.
Masks are drawn, which takes the most memory.
"""

from argparse import Namespace
from collections.abc import Callable

import numpy as np
import pyarrow.parquet as pq
from contest import Arrays, instances_file, main, parser, run
from pycocotools.coco import COCO

from data.ingest.ingestion import write_tables
from data.ingest.options import IngestConfig, SplitConfig

GOAL, GROWTH_GOAL = 0.5, 1.15
_LARGE = "large.json"


def load(given: Namespace) -> Callable[[], Arrays]:
    """`COCO()`, nothing else."""
    coco = COCO(str(given.folder / given.file))
    return lambda: {"count": np.array(len(coco.anns))}


def tables(given: Namespace) -> Callable[[], Arrays]:
    """The tables, masks as RLE."""
    split = SplitConfig(instances=given.folder / given.file, images=given.folder)
    config = IngestConfig(train=split, val=split, check_images=False)
    write_tables(config, {"train": split}, given.folder, given.workers)
    rows = pq.read_metadata(given.folder / "objects.parquet").num_rows
    return lambda: {"count": np.array(rows)}


def compare(given: Namespace) -> bool:
    """Print the ratios; counts of the two readers must agree."""
    instances_file(given.folder, given.scale)
    instances_file(given.folder, 4 * given.scale, _LARGE)
    theirs = run(given, "load")
    mine = run(given, "tables")
    large = run(given, "tables", _LARGE)
    counts = [int(result.arrays["count"]) for result in (theirs, mine, large)]
    same = counts[0] == counts[1] and abs(counts[2] - 4 * counts[1]) <= 4
    share = mine.peak_bytes / theirs.peak_bytes
    growth = large.peak_bytes / mine.peak_bytes
    print(
        f"peak memory: {share:.2f} × COCO(), goal at most {GOAL:g}; a file four times as large: "
        f"{growth:.2f} ×, goal at most {GROWTH_GOAL:g}; counts {'equal' if same else 'DIFFERENT'}"
    )
    return same and share <= GOAL and growth <= GROWTH_GOAL


if __name__ == "__main__":
    main(parser(__doc__), {"load": load, "tables": tables}, compare)
