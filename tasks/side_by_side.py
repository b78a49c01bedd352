"""Training several detectors at once, each in a process of its own."""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.tables import Dataset
from models.config import DetectorConfig
from models.detector_config import CocoFolder
from models.devices import limit_threads
from tasks.context import Progress
from tasks.orphans import end_with_parent
from tasks.train_detector import train_and_validate


@dataclass(frozen=True, slots=True)
class Run:
    """One detector to train.

    Attributes:
        config: with the run's seed.
        train_sets: what it is trained on.
        dataset: folder of the real tables.
        work: folder for checkpoints; holds `metrics.json` once the run is finished.
        out: folder to export the detector to.
    """

    config: DetectorConfig
    train_sets: tuple[CocoFolder, ...]
    dataset: Path
    work: Path
    out: Path


def train_side_by_side(
    runs: Sequence[Run], num_workers: int, progress: Progress
) -> list[dict[str, float]]:
    """Train runs on their shares of the cores; COCO metrics on the validation images, in order.

    A finished run survives a crash.
    """
    num_processes = min(len(runs), num_workers)
    threads = max(num_workers // num_processes, 1)
    spawn = multiprocessing.get_context("spawn")
    total = sum(item.config.num_iterations for item in runs)
    steps = spawn.Array("q", len(runs))
    with ProcessPoolExecutor(num_processes, spawn, _start_worker, (threads, steps)) as pool:
        futures = [pool.submit(_train, item, index) for index, item in enumerate(runs)]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            progress(sum(steps[:]), total, f"{len(runs) - len(waiting)} finished")
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
