"""Trains a small detector in two processes; `main` is called in a process of its own."""

import os
import signal
from pathlib import Path

from data.vocabulary.tables import Dataset
from models.detector.config_files import CocoFolder, Mixture
from models.detector.options import DetectorConfig
from models.detector.training import train_detector
from models.processes import run_distributed


def train(folder: Path, options: dict, death: int, mixture: Mixture | None) -> None:
    """Train; the second process dies once, in that step."""
    from forked import react_as_spawned

    react_as_spawned()
    dataset, config = Dataset(folder.parent / "ingested"), DetectorConfig.model_validate(options)
    splits = ["train", "val"] if mixture else ["train"]
    folders = [CocoFolder(dataset.instances_file(k), dataset.image_folder(k)) for k in splits]

    def on_step(step: int, losses: dict[str, float]) -> None:
        if os.environ["RANK"] == "0":
            with (folder / "steps.txt").open("a") as file:
                file.write(f"{step}\n")
        elif step == death and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    work, out = folder / "work", folder / "out"
    train_detector(config, folders, dataset.things, work, out, on_step, mixture)


def main(folder: Path, *arguments) -> None:
    from forked import launch_forked

    launch_forked()
    (folder / "work").mkdir(parents=True)
    run_distributed(train, folder, *arguments, num_processes=2)
