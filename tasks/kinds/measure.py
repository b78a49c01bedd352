"""Kind `measure`: what the synthetic validation sets are like, beside the real images of their layouts."""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from data.coco.image_sets import SyntheticSet
from data.layouts.layout import POLICIES
from data.vocabulary.tables import Dataset, write_table
from models.metrics.coco_metrics import CocoTruth, detection_recall, truth_boxes
from models.metrics.comparison import Interval, student_interval
from models.metrics.detection_scores import ScoreProtocolName, detection_score, scored_images
from models.metrics.distances import (
    RealSide,
    copy_threshold,
    frechet_defined,
    jackknife_intervals,
    moments,
    nearest_real,
    polynomial_mmd,
    prdc,
)
from models.metrics.options import DETECTOR, FEATURES_NAME, SCORER, MeasureOptions
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card
from tasks.pages.detections import COCO_METRICS_NAME, DETECTIONS_NAME
from tasks.pages.numbers import number_name
from tasks.pages.report_tables import FLOOR

FIDELITY_NAME, SCORES_NAME, COPIES_NAME = "fidelity.parquet", "scores.parquet", "copies.parquet"
"""Tables of distances, of detection scores, and of the generated images nearest to a training image."""

REAL = "real"
"""Name of the real images of the layouts."""

_COPIES_SHOWN = 8
"""Pairs of a set."""

_MOST_DRAWS = 5
"""Of other real images."""

_FEWEST = 6
"""Images that distances need: an image and five neighbours."""

_NEIGHBOURS = ("precision", "recall", "density", "coverage")

Rows = list[dict[str, Any]]
Features = tuple[Int[np.ndarray, " images"], Float[np.ndarray, "images features"]]
Context = StepContext[MeasureOptions]


def run(context: Context) -> Summary:
    """Write the tables of fidelity, detection scores and copies."""
    folders = context.many("sets")
    sets = {str(name): SyntheticSet(folders[name]) for name in POLICIES if name in folders}
    scores = _score_rows(context, sets)
    fidelity, copies = _fidelity_rows(context, sets)
    write_table(pa.Table.from_pylist(scores), context.out / SCORES_NAME)
    write_table(pa.Table.from_pylist(fidelity), context.out / FIDELITY_NAME)
    write_table(pa.Table.from_pylist(copies), context.out / COPIES_NAME)
    write_card(
        context.out,
        "Measures of generated images",
        f"## Distance to the real images\n\n{markdown_table(fidelity)}",
        f"## Detection score and recall\n\n{markdown_table(scores)}",
    )
    return {"results": _results(context, scores, fidelity)}


def _score_rows(context: Context, sets: Mapping[str, SyntheticSet]) -> Rows:
    """By scorer and protocol the real images first, then every set."""
    dataset, rows = Dataset(context.inputs["ingest"]), []
    protocols: tuple[ScoreProtocolName, ...] = get_args(ScoreProtocolName)
    scorers = dict.fromkeys(name.partition("/")[0] for name in context.many("scores"))
    for protocol in protocols:
        scored = {name: scored_images(protocol, dataset, item) for name, item in sets.items()}
        truths = {REAL: next(iter(scored.values())).real}
        truths |= {name: item.generated for name, item in scored.items()}
        rows += [
            _score_row(context, scorer, protocol, name, truth)
            for scorer in scorers
            for name, truth in truths.items()
        ]
    return sorted(rows, key=lambda row: (row["scorer"] != SCORER, row["scorer"]))


def _score_row(
    context: Context, scorer: str, protocol: ScoreProtocolName, name: str, truth: CocoTruth
) -> dict[str, Any]:
    options = context.options
    found = pq.read_table(context.inputs[f"scores/{scorer}/{name}"] / DETECTIONS_NAME)
    boxes = truth_boxes(truth)
    found = found.filter(pc.is_in(found["image_id"], pa.array(list(boxes), pa.int64())))
    return {
        "scorer": scorer,
        "gave the attributes": scorer == DETECTOR,
        "protocol": protocol,
        "images": name,
        "num_images": len(boxes),
        "num_objects": sum(len(item) for item, _ in boxes.values()),
        "recall": detection_recall(
            boxes,
            found,
            score_threshold=options.recall_score_threshold,
            iou_threshold=options.recall_iou_threshold,
        ),
        **detection_score(protocol, truth, found).as_row(),
    }


def _fidelity_rows(context: Context, sets: Mapping[str, SyntheticSet]) -> tuple[Rows, Rows]:
    """Distances of every set and of other real images to the real ones, and the likeliest copies."""
    found = {name: _features(folder) for name, folder in context.many("features").items()}
    sources = sorted({key for item in sets.values() for key in item.source_image_ids})
    image_ids, features = found[REAL]
    real = features[np.isin(image_ids, sources)]
    known_ids, known = found["train"]
    limit = copy_threshold(known, real)
    facts = context.manifest(f"features/{REAL}").summary
    rows = [_floor_row(real, known, facts)]
    copies: Rows = []
    for name in sets:
        ids, generated = found[name]
        nearest, distance = nearest_real(known, generated)
        share = float((distance < limit).mean())
        rows.append(_fidelity_row(name, real, generated, facts) | {"copies": share})
        copies += [
            {
                "images": name,
                "image_id": int(ids[row]),
                "real_image_id": int(known_ids[nearest[row]]),
                "distance": float(distance[row]),
                "limit": limit,
            }
            for row in np.argsort(distance)[:_COPIES_SHOWN]
        ]
    return rows, copies


def _features(folder: Path) -> Features:
    """Image ids, and features."""
    table = pq.read_table(folder / FEATURES_NAME).combine_chunks()
    flat = pc.list_flatten(table["features"]).to_numpy()
    return table["image_id"].to_numpy(), flat.reshape(table.num_rows, -1)


def _floor_row(real: np.ndarray, others: np.ndarray, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Other real images for generated ones: as many, in several disjoint draws."""
    count = min(len(real), len(others))
    order = np.random.default_rng(0).permutation(len(others))
    num_draws = min(len(others) // count, _MOST_DRAWS)
    draws = [_fidelity_row(FLOOR, real, others[order[i::num_draws][:count]], facts)
             for i in range(num_draws)]  # fmt: skip
    row: dict[str, Any] = dict(draws[0])
    for name in ("frechet_distance", "kid"):
        if num_draws > 1 and row[name] is not None:
            row |= _limits(name, student_interval([draw[name] for draw in draws]))
    for name in _NEIGHBOURS:
        if row[name] is not None:
            row[name] = float(np.mean([draw[name] for draw in draws]))
    return row | {"copies": None}


def _fidelity_row(
    name: str, real: np.ndarray, generated: np.ndarray, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Distances of one set to the real images, with what they depend on."""
    row: dict[str, Any] = {
        "images": name,
        "extractor": facts["extractor"],
        "num_images": len(generated),
        "num_real": len(real),
        "num_features": facts["features"],
        "resolution": facts["resolution"],
        "resize": facts["resize"],
    }
    count = min(len(real), len(generated))
    defined = frechet_defined(count, facts["features"])
    of_real = RealSide(moments([real])) if defined else None

    def distances(kept: Int[np.ndarray, " kept"]) -> tuple[float, ...]:
        shown = generated[kept]
        discrepancy = polynomial_mmd(real, shown)
        return (
            (discrepancy, of_real.frechet_distance(moments([shown]))) if of_real else (discrepancy,)
        )

    intervals = jackknife_intervals(distances, len(generated)) if count >= _FEWEST else ()
    found = dict(zip(("kid", "frechet_distance"), intervals, strict=False))
    for number in ("frechet_distance", "kid"):
        row |= _limits(number, found.get(number))
    near = asdict(prdc(real, generated)) if count >= _FEWEST else dict.fromkeys(_NEIGHBOURS)
    return row | near


def _limits(name: str, interval: Interval | None) -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, astuple(interval), strict=True)) if interval else dict.fromkeys(names)


def _results(context: Context, scores: Rows, fidelity: Rows) -> dict[str, Any]:
    """The headline numbers as one flat mapping; scores are the independent scorer's, of the layouts."""
    detector = json.loads((context.inputs["detections"] / COCO_METRICS_NAME).read_text())
    results = {
        "detector_map_real": detector["map"],
        "detector_map50_real": detector["map50"],
        "hard_share_train": context.manifest("attributes").summary["hard_share"]["train"],
    }
    of_layouts = [row for row in scores if row["protocol"] == "layout"]
    of_scorer = [row for row in of_layouts if row["scorer"] == SCORER]
    for number, column in (("ap50", "map50"), ("ap75", "map75")):
        results |= {f"score_{number}_{row['images']}": row[column] for row in of_scorer}
    for row in of_layouts:
        suffix = "" if row["scorer"] == SCORER else f"_by_{number_name(row['scorer'])}"
        results[f"recall_{row['images']}{suffix}"] = row["recall"]
    for number, column in (("frechet", "frechet_distance"), ("kid", "kid"), ("copies", "copies")):
        results |= {f"{number}_{row['images']}": row[column] for row in fidelity}
    return results
