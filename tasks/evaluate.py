"""Stage `evaluate`: fidelity, trainability and the report."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.coco import boxes_by_image, read_coco
from data.gallery import contact_sheet, draw_layout, png_bytes
from data.images import read_square
from data.layouts import Layout, evenly_spaced, read_layouts
from data.tables import Dataset, write_table
from models.config import EvaluationConfig
from models.detector import Detector, detections_table
from models.evaluation import coco_metrics, detection_recall
from models.feature_extractors import DetectorFeatures, frechet_distances
from models.training import read_metrics
from tasks.cards import markdown_picture, markdown_table, write_card
from tasks.context import StepContext, Summary
from tasks.report import loss_curves, write_report
from tasks.synthesize import IMAGES, INSTANCES, POLICIES, PROVENANCE

_GALLERY_COLUMNS = 10
_THUMBNAIL = 64
_INCEPTION_FEATURES = 2048


def run(context: StepContext[EvaluationConfig]) -> Summary:
    """Measure everything; write `fidelity.parquet`, `trainability.parquet` and `report.html`."""
    started = time.monotonic()
    config = context.config
    dataset = Dataset(context.inputs["ingest"])
    context.progress(0, 3, "detection score")
    scores = _score_rows(context, config, dataset)
    context.progress(1, 3, "Fréchet distance")
    distances, extractor = _distances(context, config, dataset)
    context.progress(2, 3, "report")
    fidelity = [{**row, "frechet_distance": distances.get(row["images"])} for row in scores]
    trainability = pq.read_table(context.inputs["retrain"] / "metrics.parquet").to_pylist()
    write_table(pa.Table.from_pylist(fidelity), context.out / "fidelity.parquet")
    write_table(pa.Table.from_pylist(trainability), context.out / "trainability.parquet")
    results = _results(context, scores, distances, trainability)
    gallery = _gallery(context, dataset)
    sections = {
        f"Fidelity (distance: Fréchet distance ({extractor}); detection score: train-scorer)": fidelity,
        "Trainability (COCO metrics on real validation images)": trainability,
    }
    write_report(
        context.out / "report.html",
        results=results,
        tables=sections | {"Stages": _stage_rows(context, time.monotonic() - started)},
        curves=loss_curves(read_metrics(context.inputs["train-generator"] / "metrics.jsonl")),
        gallery=png_bytes(gallery),
    )
    write_card(
        context.out,
        "Evaluation",
        *(f"## {title}\n\n{markdown_table(rows)}" for title, rows in sections.items()),
        "## Real, origin, easy, hard",
        markdown_picture(gallery, "the same layouts, real and generated"),
    )
    return {"results": results, "extractor": extractor}


def _score_rows(
    context: StepContext[EvaluationConfig], config: EvaluationConfig, dataset: Dataset
) -> list[dict[str, Any]]:
    """Detection score and recall of real images, then of every measured synthetic set."""
    scorer = Detector.load(context.inputs["train-scorer"] / "detector")
    sources = _source_image_ids(context.inputs["synthesize"] / "origin")
    paths = dict(dataset.image_paths("val"))
    rows = []
    for name, instances, images in (
        ("real", dataset.instances_file("val"), [(key, paths[key]) for key in sources]),
        *((policy, *_synthetic_set(context, policy)) for policy in POLICIES),
    ):
        found = detections_table("val", scorer.detect(images, config.batch_size), "train-scorer")
        image_ids = [image_id for image_id, _ in images]
        metrics = coco_metrics(instances, found, image_ids)
        truth = boxes_by_image(read_coco(instances))
        recall = detection_recall(
            {key: truth[key] for key in image_ids},
            found,
            score_threshold=config.recall_score_threshold,
            iou_threshold=config.recall_iou_threshold,
        )
        rows.append({"images": name, "recall": recall, **metrics.as_row()})
    return rows


def _source_image_ids(folder: Path) -> list[int]:
    column = pq.read_table(folder / PROVENANCE, columns=["source_image_id"])["source_image_id"]
    return sorted(set(column.to_pylist()))


def _synthetic_set(
    context: StepContext[EvaluationConfig], name: str
) -> tuple[Path, list[tuple[int, Path]]]:
    folder = context.inputs["synthesize"] / name
    rows = pq.read_table(folder / PROVENANCE, columns=["image_id", "file_name"]).to_pylist()
    return folder / INSTANCES, [
        (row["image_id"], folder / IMAGES / row["file_name"]) for row in rows
    ]


def _distances(
    context: StepContext[EvaluationConfig], config: EvaluationConfig, dataset: Dataset
) -> tuple[dict[str, float], str]:
    """Fréchet distance of every measured set, and of as many real training images as the floor."""
    paths = dict(dataset.image_paths("val"))
    real = [paths[key] for key in _source_image_ids(context.inputs["synthesize"] / "origin")]
    candidates: dict[str, list[Path]] = {
        name: [path for _, path in _synthetic_set(context, name)[1]] for name in POLICIES
    }
    train_images = [path for _, path in dataset.image_paths("train")]
    candidates["real"] = evenly_spaced(train_images, len(candidates["origin"]))
    resolution = _resolution(context)
    if config.features == "inception":
        weights, features = config.inception_weights, _INCEPTION_FEATURES
        return frechet_distances(
            features, real, candidates, resolution, weights
        ), "InceptionV3, FID"
    scorer = Detector.load(context.inputs["train-scorer"] / "detector")
    module = DetectorFeatures(scorer, resolution)
    return frechet_distances(module, real, candidates, resolution), "scorer's backbone"


def _resolution(context: StepContext[EvaluationConfig]) -> int:
    return int(context.manifest("train-generator").config["resolution"])


def _results(
    context: StepContext[EvaluationConfig],
    scores: list[dict[str, Any]],
    distances: dict[str, float],
    trainability: list[dict[str, Any]],
) -> dict[str, float]:
    """The headline numbers as one flat mapping."""
    by_name = {row["images"]: row for row in scores}
    arms = pa.Table.from_pylist(trainability).group_by("arm").aggregate([("map", "mean")])
    means = dict(zip(arms["arm"].to_pylist(), arms["map_mean"].to_pylist(), strict=True))
    detector = context.manifest("train-detector").summary["metrics"]
    hard_share = context.manifest("extract-attributes").summary["hard_share"]
    return {
        "detector_map_real": detector["map"],
        "detector_map50_real": detector["map50"],
        "hard_share_train": hard_share["train"],
        "score_ap50_real": by_name["real"]["map50"],
        **{f"score_ap50_{name}": by_name[name]["map50"] for name in POLICIES},
        "recall_real": by_name["real"]["recall"],
        **{f"recall_{name}": by_name[name]["recall"] for name in POLICIES},
        "map_real": means["real"],
        "map_real_plus_synthetic": means["real+synthetic"],
        **{f"frechet_{name}": distances[name] for name in POLICIES},
        "frechet_floor": distances["real"],
    }


def _gallery(context: StepContext[EvaluationConfig], dataset: Dataset) -> np.ndarray:
    """Rows real, origin, easy, hard; columns the same layouts, with boxes."""
    attributes = pq.read_table(context.inputs["extract-attributes"] / "attributes.parquet")
    layouts = {item.image_id: item for item in read_layouts(dataset, attributes, "val")}
    paths = dict(dataset.image_paths("val"))
    origin = pq.read_table(context.inputs["synthesize"] / "origin" / PROVENANCE).to_pylist()
    common = set.intersection(
        *(set(_source_image_ids(context.inputs["synthesize"] / name)) for name in POLICIES)
    )
    firsts = [row["source_image_id"] for row in origin if row["repeat"] == 0]
    chosen = evenly_spaced([layouts[key] for key in firsts if key in common], _GALLERY_COLUMNS)
    rows = [[_picture(paths[item.image_id], item) for item in chosen]]
    for policy in POLICIES:
        folder = context.inputs["synthesize"] / policy
        files = {
            row["source_image_id"]: folder / IMAGES / row["file_name"]
            for row in pq.read_table(folder / PROVENANCE).to_pylist()
            if row["repeat"] == 0
        }
        rows.append([_picture(files[i.image_id], i.with_policy(policy)) for i in chosen])
    return contact_sheet(rows)


def _picture(path: Path, layout: Layout) -> np.ndarray:
    return draw_layout(read_square(path, _THUMBNAIL), layout)


def _stage_rows(context: StepContext[EvaluationConfig], own_seconds: float) -> list[dict[str, Any]]:
    manifests = [context.manifest(name) for name in context.inputs]
    rows = [
        {"stage": m.stage, "seconds": m.seconds, "peak memory, GB": m.peak_memory_bytes / 1e9}
        for m in sorted(manifests, key=lambda item: item.created_at)
    ]
    return [*rows, {"stage": "evaluate", "seconds": own_seconds, "peak memory, GB": "—"}]
