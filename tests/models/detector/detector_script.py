"""Trains a small detector in two processes; `main` is called in a process of its own."""

import multiprocessing
import os
import signal
from pathlib import Path

from torch.distributed.launcher.api import LaunchConfig

from data.vocabulary.tables import Dataset
from models import processes
from models.detector.config_files import CocoFolder, Mixture
from models.detector.options import DetectorConfig
from models.detector.training import train_detector
from models.processes import run_distributed


def train(folder: Path, options: dict, death: int, mixture: Mixture | None) -> None:
    """Train; the second process dies once, in that step."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # as of one that was spawned
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    multiprocessing.set_start_method(None, force=True)  # a fork server's own would be inherited
    (folder / "work").mkdir(parents=True)
    # Forked: spawned, each would import PyTorch and MMDetection.
    processes.LaunchConfig = lambda **given: LaunchConfig(**given | {"start_method": "fork"})
    run_distributed(train, folder, *arguments, num_processes=2)
