"""Stages `train-detector` and `train-scorer`: a detector on the real training images."""

from collections.abc import Callable, Sequence
from pathlib import Path

from data.tables import Dataset
from models.config import DetectorConfig
from models.detector import Detector, detections_table, train_detector
from models.detector_config import CocoFolder
from models.evaluation import coco_metrics
from tasks.cards import markdown_table, write_card
from tasks.context import StepContext, Summary

_VALIDATION_BATCH = 32


def run(context: StepContext[DetectorConfig]) -> Summary:
    """Train on the real images, evaluate on the validation images, export the detector."""
    config = context.config
    dataset = Dataset(context.inputs["ingest"])

    def on_step(step: int, losses: dict[str, float]) -> None:
        context.progress(step, config.num_iterations, f"loss {losses.get('loss', 0):.3f}")

    metrics = train_and_validate(
        config, dataset, [real_images(dataset)], context.work, context.out / "detector", on_step
    )
    write_card(context.out, f"Detector {config.config}", markdown_table([metrics]))
    return {"metrics": metrics}


def real_images(dataset: Dataset) -> CocoFolder:
    """The real training images and their accepted things."""
    return CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))


def train_and_validate(
    config: DetectorConfig,
    dataset: Dataset,
    train_sets: Sequence[CocoFolder],
    work: Path,
    folder: Path,
    on_step: Callable[[int, dict[str, float]], None],
) -> dict[str, float]:
    """Train one detector into `folder` and return its COCO metrics on the validation images."""
    train_detector(config, train_sets, dataset.things, work, folder, on_step)
    found = Detector.load(folder).detect(dataset.image_paths("val"), _VALIDATION_BATCH)
    detections = detections_table("val", found, folder.name)
    return coco_metrics(dataset.instances_file("val"), detections).as_row()
