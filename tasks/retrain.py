"""Stage `retrain`: detectors on real and on real + synthetic images, for equal iterations."""

from typing import Any

import pyarrow as pa

from data.tables import Dataset, write_table
from models.config import RetrainConfig
from models.detector_config import CocoFolder
from tasks.cards import markdown_table, write_card
from tasks.context import StepContext, Summary
from tasks.side_by_side import Run, train_side_by_side
from tasks.synthesize import IMAGES, INSTANCES, TRAIN_SET
from tasks.train_detector import real_images


def run(context: StepContext[RetrainConfig]) -> Summary:
    """Train every arm with every seed, side by side; a finished detector survives a crash."""
    arms = _arms(context)
    metrics = train_side_by_side([item for _, item in arms], context.num_workers, context.progress)
    rows: list[dict[str, Any]] = [
        {"arm": arm, "seed": item.config.seed, **numbers}
        for (arm, item), numbers in zip(arms, metrics, strict=True)
    ]
    write_table(pa.Table.from_pylist(rows), context.out / "metrics.parquet")
    detector = context.config.detector
    write_card(
        context.out,
        "Retrained detectors",
        f"{detector.num_iterations} iterations of {detector.batch_size} images each; "
        "COCO metrics on the real validation images.",
        markdown_table(rows),
    )
    return {"arms": rows}


def _arms(context: StepContext[RetrainConfig]) -> list[tuple[str, Run]]:
    """Arm and run: `real` and `real+synthetic` with every seed."""
    dataset = Dataset(context.inputs["ingest"])
    real = real_images(dataset)
    folder = context.inputs["synthesize"] / TRAIN_SET
    synthetic = CocoFolder(folder / INSTANCES, folder / IMAGES)
    return [
        (
            arm,
            Run(
                config=context.config.detector.model_copy(update={"seed": seed}),
                train_sets=train_sets,
                dataset=dataset.folder,
                work=context.work / f"{arm}-{seed}",
                out=context.out / f"{arm}-{seed}",
            ),
        )
        for seed in context.config.seeds
        for arm, train_sets in (("real", (real,)), ("real+synthetic", (real, synthetic)))
    ]
