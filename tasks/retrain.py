"""Stage `retrain`: detectors on real and on real + synthetic images, for equal iterations."""

import json
import multiprocessing
from collections.abc import MutableMapping
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.tables import Dataset, write_table
from models.config import DetectorConfig, RetrainConfig
from models.detector import CocoFolder
from models.devices import limit_threads
from tasks.cards import markdown_table, write_card
from tasks.context import StepContext, Summary
from tasks.synthesize import IMAGES, INSTANCES
from tasks.train_detector import train_and_validate

_SYNTHETIC_SET = "train"


@dataclass(frozen=True, slots=True)
class Run:
    """One detector to train: an arm with a seed.

    Attributes:
        arm: `real` or `real+synthetic`.
        config: with the run's seed.
        train_sets: of the arm.
        dataset: folder of the real tables.
        work: folder for checkpoints; holds `metrics.json` once the run is finished.
        out: folder to export the detector to.
    """

    arm: str
    config: DetectorConfig
    train_sets: tuple[CocoFolder, ...]
    dataset: Path
    work: Path
    out: Path

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm}-{self.config.seed}"


def run(context: StepContext[RetrainConfig]) -> Summary:
    """Train every arm with every seed, side by side; a finished detector survives a crash."""
    runs = _runs(context)
    metrics = _train_side_by_side(context, runs)
    rows: list[dict[str, Any]] = [
        {"arm": item.arm, "seed": item.config.seed, **numbers}
        for item, numbers in zip(runs, metrics, strict=True)
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


def _runs(context: StepContext[RetrainConfig]) -> list[Run]:
    dataset = Dataset(context.inputs["ingest"])
    real = CocoFolder(dataset.instances_file("train"), dataset.image_folder("train"))
    folder = context.inputs["synthesize"] / _SYNTHETIC_SET
    synthetic = CocoFolder(folder / INSTANCES, folder / IMAGES)
    return [
        Run(
            arm=arm,
            config=context.config.detector.model_copy(update={"seed": seed}),
            train_sets=train_sets,
            dataset=dataset.folder,
            work=context.work / f"{arm}-{seed}",
            out=context.out / f"{arm}-{seed}",
        )
        for seed in context.config.seeds
        for arm, train_sets in (("real", (real,)), ("real+synthetic", (real, synthetic)))
    ]


def _train_side_by_side(
    context: StepContext[RetrainConfig], runs: list[Run]
) -> list[dict[str, float]]:
    """Train runs in processes of their own, each on its share of the cores; metrics in order."""
    num_processes = min(len(runs), context.num_workers)
    threads = max(context.num_workers // num_processes, 1)
    spawn = multiprocessing.get_context("spawn")
    total = len(runs) * context.config.detector.num_iterations
    with (
        spawn.Manager() as manager,
        ProcessPoolExecutor(num_processes, spawn, limit_threads, (threads,)) as pool,
    ):
        steps = manager.dict()
        futures = [pool.submit(_train, item, steps) for item in runs]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            context.progress(sum(steps.values()), total, f"{len(runs) - len(waiting)} finished")
    return [future.result() for future in futures]


def _train(item: Run, steps: MutableMapping[str, int]) -> dict[str, float]:
    record = item.work / "metrics.json"
    if not record.exists():

        def on_step(step: int, losses: dict[str, float]) -> None:
            steps[item.name] = step

        metrics = train_and_validate(
            item.config, Dataset(item.dataset), item.train_sets, item.work, item.out, on_step
        )
        record.write_text(json.dumps(metrics))
    steps[item.name] = item.config.num_iterations
    return dict(json.loads(record.read_text()))
