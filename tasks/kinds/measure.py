"""Kind `measure`: fidelity of synthetic sets, trainability of arms, and the headline numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.coco.files import boxes_by_image, read_coco
from data.coco.image_sets import ImageSet, SyntheticSet, real_images
from data.layouts.layout import POLICIES
from data.vocabulary.tables import Dataset, write_table
from models.metrics.coco_metrics import coco_metrics, detection_recall
from models.metrics.features import FEATURES_NAME, frechet_distance
from models.metrics.options import MeasureOptions
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card
from tasks.pages.detections import COCO_METRICS_NAME, DETECTIONS_NAME

FIDELITY_NAME, TRAINABILITY_NAME = "fidelity.parquet", "trainability.parquet"

REAL, FLOOR = "real", "floor"
"""Names of the real images among the scores and features, and of other real ones among the features."""

Rows = list[dict[str, Any]]
Context = StepContext[MeasureOptions]


def run(context: Context) -> Summary:
    """Write `fidelity.parquet` and `trainability.parquet`."""
    folders = context.many("sets")
    sets: dict[str, SyntheticSet] = {
        name: SyntheticSet(folders[name]) for name in POLICIES if name in folders
    }
    sources = sorted({key for item in sets.values() for key in item.source_image_ids})
    scores = _score_rows(context, sets, sources)
    distances = _distances(context, sets, sources)
    fidelity = [{**row, "frechet_distance": distances.get(row["images"])} for row in scores]
    trainability = _arm_rows(context)
    write_table(pa.Table.from_pylist(fidelity), context.out / FIDELITY_NAME)
    write_table(pa.Table.from_pylist(trainability), context.out / TRAINABILITY_NAME)
    extractor = context.manifest(f"features/{REAL}").summary["extractor"]
    write_card(
        context.out,
        "Measures",
        f"## Fidelity (Fréchet distance by {extractor})\n\n{markdown_table(fidelity)}",
        f"## Trainability (COCO metrics on real validation images)\n\n{markdown_table(trainability)}",
    )
    return {
        "results": _results(context, scores, distances, trainability),
        "extractor": extractor,
    }


def _score_rows(context: Context, sets: dict[str, SyntheticSet], sources: list[int]) -> Rows:
    """Detection score and recall of real images, then of every synthetic set."""
    real = real_images(Dataset(context.inputs["ingest"]), "val", sources)
    images = {REAL: real} | {name: item.image_set for name, item in sets.items()}
    return [_score_row(context, name, item) for name, item in images.items()]


def _score_row(context: Context, name: str, images: ImageSet) -> dict[str, Any]:
    options = context.options
    found = pq.read_table(context.inputs[f"scores/{name}"] / DETECTIONS_NAME)
    found = found.filter(pc.is_in(found["image_id"], pa.array(images.image_ids, pa.int64())))
    truth = boxes_by_image(read_coco(images.instances))
    recall = detection_recall(
        {key: truth[key] for key in images.image_ids},
        found,
        score_threshold=options.recall_score_threshold,
        iou_threshold=options.recall_iou_threshold,
    )
    metrics = coco_metrics(images.instances, found, images.image_ids)
    return {"images": name, "recall": recall, **metrics.as_row()}


def _distances(
    context: Context, sets: dict[str, SyntheticSet], sources: list[int]
) -> dict[str, float]:
    """Fréchet distance of every set, and of other real images, to the real ones of its layouts."""
    features = {name: _features(folder) for name, folder in context.many("features").items()}
    image_ids, of_real = features[REAL]
    real = of_real[np.isin(image_ids, sources)]
    return {name: frechet_distance(real, features[name][1]) for name in (*sets, FLOOR)}


def _features(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image ids, and features (images, features)."""
    table = pq.read_table(folder / FEATURES_NAME).combine_chunks()
    flat = pc.list_flatten(table["features"]).to_numpy()
    return table["image_id"].to_numpy(), flat.reshape(table.num_rows, -1)


def _arm_rows(context: Context) -> Rows:
    """COCO metrics of every arm and seed, from inputs `arms/ARM/SEED`."""
    rows = []
    for name, folder in context.many("arms").items():
        arm, seed = name.split("/")
        metrics = json.loads((folder / COCO_METRICS_NAME).read_text())
        rows.append({"arm": arm, "seed": int(seed), **metrics})
    return sorted(rows, key=lambda row: (row["arm"], row["seed"]))


def _mean_map(rows: Rows) -> float:
    return float(np.mean([row["map"] for row in rows]))


def _results(
    context: Context, scores: Rows, distances: dict[str, float], trainability: Rows
) -> dict[str, float]:
    """The headline numbers as one flat mapping; of several synthetic arms real+hard's."""
    by_name = {row["images"]: row for row in scores}
    arms = {row["arm"]: [r for r in trainability if r["arm"] == row["arm"]] for row in trainability}
    synthetic = sorted(set(arms) - {REAL}, key=lambda arm: (not arm.endswith("hard"), arm))
    detector = json.loads((context.inputs["detections"] / COCO_METRICS_NAME).read_text())
    hard_share = context.manifest("attributes").summary["hard_share"]
    results = {
        "detector_map_real": detector["map"],
        "detector_map50_real": detector["map50"],
        "hard_share_train": hard_share["train"],
    }
    results |= {f"score_ap50_{name}": row["map50"] for name, row in by_name.items()}
    results |= {f"recall_{name}": row["recall"] for name, row in by_name.items()}
    if REAL in arms:
        results["map_real"] = _mean_map(arms[REAL])
    if synthetic:
        results["map_real_plus_synthetic"] = _mean_map(arms[synthetic[0]])
    return results | {f"frechet_{name}": value for name, value in distances.items()}
