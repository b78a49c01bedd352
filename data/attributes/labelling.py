"""Perception-aware attributes: which labelled objects a detector finds (paper section 3.1).

A ground-truth box is `easy` if some detection with score > γ has IoU > β with it, else `hard`. Both
comparisons are strict: a score equal to γ is not kept, an IoU equal to β is hard. The literal rule is
class-agnostic and many-to-one. IoUs are float64; of equal IoUs the detection of higher score is the
match, of equal scores the one that stands first in the table. γ comes before the choice of the match.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.attributes.matching import (
    Matches,
    class_groups,
    greedy,
    hungarian,
    match_best,
    match_one_to_one,
)
from data.attributes.options import AttributeConfig
from data.layouts.layout import PerceptionAttribute
from data.vocabulary.splits import Split
from data.vocabulary.tables import ATTRIBUTES, BOX_COLUMNS, Dataset, box_array

_IDENTITY = ("split", "object_id", "image_id", "category_id", "is_thing")


def extract_attributes(
    dataset: Dataset,
    detections: pa.Table,
    split: Split,
    config: AttributeConfig,
    num_threads: int = 1,
) -> pa.Table:
    """Label every thing of a split that is not a crowd `easy` or `hard`; stuff if so configured.

    Args:
        detections: table with schema `DETECTIONS`.

    Returns:
        A table with schema `ATTRIBUTES`, one row per object: things, then stuff, by image and id.
    """
    with_stuff = config.stuff == "literal"
    with ThreadPoolExecutor(num_threads) as pool:
        scoring = pool.submit(_scored_objects, dataset, split, with_stuff=with_stuff)
        kept = pool.submit(_kept_detections, detections, split, config.score_threshold).result()
        objects = scoring.result()
    matches = _match(objects, kept, config, num_threads)
    matched = pa.array(matches.detection, mask=matches.detection < 0)
    easy = pa.array(matches.best_iou > config.iou_threshold).cast(pa.int8())
    return pa.table(
        {
            **{name: objects[name] for name in _IDENTITY},
            "best_iou": matches.best_iou,
            "matched_score": kept["score"].take(matched),
            "matched_category_id": kept["category_id"].take(matched),
            "attribute": pa.array([PerceptionAttribute.HARD, PerceptionAttribute.EASY]).take(easy),
        },
        schema=ATTRIBUTES,
    )


def _scored_objects(dataset: Dataset, split: Split, *, with_stuff: bool) -> pa.Table:
    table = dataset.objects
    wanted = pc.and_not(pc.equal(table["split"], split), table["is_crowd"])
    if not with_stuff:
        wanted = pc.and_(wanted, table["is_thing"])
    table = table.select([*_IDENTITY, *BOX_COLUMNS]).filter(wanted)
    stuff = ~table["is_thing"].to_numpy(zero_copy_only=False)
    return _in_order(table, stuff, table["image_id"].to_numpy(), table["object_id"].to_numpy())


def _kept_detections(detections: pa.Table, split: Split, score_threshold: float) -> pa.Table:
    kept = pc.and_(
        pc.greater(detections["score"], pa.scalar(score_threshold, pa.float32())),
        pc.equal(detections["split"], split),
    )
    table = detections.select(["image_id", "category_id", "score", *BOX_COLUMNS]).filter(kept)
    return _in_order(table, table["image_id"].to_numpy(), -table["score"].to_numpy())


def _in_order(table: pa.Table, *keys: np.ndarray) -> pa.Table:
    """Rows by the first key, then the second, …; equal rows and ordered tables stay as they are."""
    ordered = np.ones(max(table.num_rows - 1, 0), bool)
    for key in reversed(keys):
        ordered = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & ordered)
    return table if ordered.all() else table.take(np.lexsort(keys[::-1]))


def _match(objects: pa.Table, kept: pa.Table, config: AttributeConfig, num_threads: int) -> Matches:
    groups, found_groups = objects["image_id"].to_numpy(), kept["image_id"].to_numpy()
    if config.class_aware:
        labels, found_labels = objects["category_id"].to_numpy(), kept["category_id"].to_numpy()
        groups, found_groups = class_groups(groups, labels, found_groups, found_labels)
    pairs = (box_array(objects), groups, box_array(kept), found_groups)
    if config.matching == "many-to-one":
        return match_best(*pairs, num_threads=num_threads)
    assign = hungarian if config.matching == "hungarian" else greedy
    return match_one_to_one(*pairs, assign=assign, iou_threshold=config.iou_threshold)
