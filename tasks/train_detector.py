"""Stages `train-detector` and `train-scorer`: a detector on the real training images."""

from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel

from data.tables import Dataset
from models.config import DetectorConfig
from models.detector import CocoFolder, Detector, detections_table, train_detector
from models.evaluation import coco_metrics
from tasks.cards import markdown_table, write_card
from tasks.context import StepContext, Summary

_VALIDATION_BATCH = 32


def run(context: StepContext[DetectorConfig]) -> Summary:
    """Train on the real images, evaluate on the validation images, export the detector."""
    config = context.config
    dataset = Dataset(context.inputs["ingest"])
    real = CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))
    metrics = train_and_validate(context, config, dataset, [real], "detector")
    write_card(context.out, f"Detector {config.config}", markdown_table([metrics]))
    return {"metrics": metrics}


def train_and_validate(
    context: StepContext[BaseModel],
    config: DetectorConfig,
    dataset: Dataset,
    train_sets: list[CocoFolder],
    name: str,
) -> dict[str, float]:
    """Train one detector into `<out>/<name>` and return its COCO metrics on the validation images."""

    def on_step(step: int, losses: dict[str, float]) -> None:
        context.progress(step, config.num_iterations, f"{name}: loss {losses.get('loss', 0):.3f}")

    folder = context.out / name
    train_detector(config, train_sets, dataset.things, context.work / name, folder, on_step)
    detections = detect_split(folder, dataset, _VALIDATION_BATCH)
    return coco_metrics(dataset.instances_file("val"), detections).as_row()


def detect_split(folder: Path, dataset: Dataset, batch_size: int) -> pa.Table:
    """Run a detector over the validation images."""
    found = Detector.load(folder).detect(dataset.image_paths("val"), batch_size)
    return detections_table("val", found)
