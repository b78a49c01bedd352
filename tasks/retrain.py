"""Stage `retrain`: detectors on real and on real + synthetic images, for equal iterations."""

import json
import multiprocessing
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
from tasks.orphans import end_with_parent
from tasks.synthesize import IMAGES, INSTANCES, TRAIN_SET
from tasks.train_detector import real_images, train_and_validate


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
    real = real_images(dataset)
    folder = context.inputs["synthesize"] / TRAIN_SET
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
    steps = spawn.Array("q", len(runs))
    with ProcessPoolExecutor(num_processes, spawn, _start_worker, (threads, steps)) as pool:
        futures = [pool.submit(_train, item, index) for index, item in enumerate(runs)]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            context.progress(sum(steps[:]), total, f"{len(runs) - len(waiting)} finished")
    return [future.result() for future in futures]


_steps: Any = None
"""In a worker: the shared array of every run's steps."""


def _start_worker(num_threads: int, steps: Any) -> None:
    global _steps  # noqa: PLW0603  # the only way into a pool's worker
    _steps = steps
    limit_threads(num_threads)
    end_with_parent()


def _train(item: Run, index: int) -> dict[str, float]:
    """Train one run in a worker, unless an earlier attempt has finished it."""
    record = item.work / "metrics.json"
    if not (record.exists() and item.out.exists()):

        def on_step(step: int, losses: dict[str, float]) -> None:
            _steps[index] = step

        metrics = train_and_validate(
            item.config, Dataset(item.dataset), item.train_sets, item.work, item.out, on_step
        )
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(metrics))
        temporary.replace(record)
    _steps[index] = item.config.num_iterations
    return dict(json.loads(record.read_text()))
