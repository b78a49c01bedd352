"""Stage `retrain`: detectors on real and on real + synthetic images, for equal iterations."""

import json

import pyarrow as pa

from data.tables import Dataset, write_table
from models.config import RetrainConfig
from models.detector import CocoFolder
from tasks.cards import markdown_table, write_card
from tasks.context import StepContext, Summary
from tasks.synthesize import IMAGES, INSTANCES
from tasks.train_detector import train_and_validate

_SYNTHETIC_SET = "train"


def run(context: StepContext[RetrainConfig]) -> Summary:
    """Train every arm with every seed; a finished detector survives a crash."""
    config = context.config
    dataset = Dataset(context.inputs["ingest"])
    real = CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))
    synthetic_folder = context.inputs["synthesize"] / _SYNTHETIC_SET
    synthetic = CocoFolder(synthetic_folder / INSTANCES, synthetic_folder / IMAGES)
    arms = {"real": [real], "real+synthetic": [real, synthetic]}
    rows = []
    for seed in config.seeds:
        settings = config.detector.model_copy(update={"seed": seed})
        for arm, train_sets in arms.items():
            record = context.work / f"{arm}-{seed}.json"
            if not (record.exists() and (context.out / f"{arm}-{seed}").exists()):
                metrics = train_and_validate(context, settings, dataset, train_sets, f"{arm}-{seed}")
                record.write_text(json.dumps(metrics))
            rows.append({"arm": arm, "seed": seed, **json.loads(record.read_text())})
    write_table(pa.Table.from_pylist(rows), context.out / "metrics.parquet")
    write_card(
        context.out,
        "Retrained detectors",
        f"{config.detector.num_iterations} iterations of {config.detector.batch_size} images each; "
        "COCO metrics on the real validation images.",
        markdown_table(rows),
    )
    return {"arms": rows}
