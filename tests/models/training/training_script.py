"""Trains a tiny generator, for tests that kill it: `main` is called in a process of its own.

DEATH is `-`, `step:N` (SIGKILL after step N), `write:N` (SIGKILL within the N-th checkpoint's write),
`rank:N` (SIGKILL of the second process after step N), or `host:N` (likewise of this host's process and
of what started it); a death comes once for each folder. HOST is `other` on all hosts but the first.
"""

import os
import signal
from pathlib import Path

import numpy as np
import torch

from data.layouts.layout import read_layouts
from data.layouts.prompts import LocationGrid
from data.vocabulary.images import read_square
from data.vocabulary.tables import Dataset
from models.generator.modules import create_base_model, prepare_generator, save_generator
from models.generator.options import GeneratorConfig, NewModelConfig
from models.processes import Hosts, is_main_process, run_distributed
from models.training import loop as training
from models.training.batches import make_batch
from models.training.training_set import build_training_set

SHAPE = NewModelConfig(
    block_out_channels=(16, 32), text_hidden_size=32, text_layers=1, decoder_steps=0
)
OPTIONS = {
    "base_model": SHAPE,
    "resolution": 64,
    "layout_conditioning": "both",
    "num_steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "text_learning_rate": 1e-3,
    "num_warmup_steps": 2,
    "checkpoint_interval": 2,
    "probe": {"interval": 3},
    "mixed_precision": "no",
}


def die_once(folder: Path, reason: str) -> None:
    marker = folder / f"died-{reason.replace(':', '-')}"
    if not marker.exists():
        marker.touch()
        if reason.startswith("host"):
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def arm(folder: Path, death: str) -> None:
    """Make the N-th checkpoint's write end half-way."""
    kind, _, number = death.partition(":")
    whole, count = torch.save, [0]

    def torn(document, file):
        count[0] += 1
        if kind == "write" and count[0] == int(number):
            file.write(b"half of a checkpoint")
            file.flush()
            die_once(folder, death)
        whole(document, file)

    torch.save = torn


def prepare(folder: Path):
    dataset = Dataset(folder.parent / "ingested")
    paths = dict(dataset.image_paths("train"))
    images = np.stack([read_square(path, 64) for path in paths.values()])
    base = create_base_model(SHAPE, images, [item.name for item in dataset.categories], seed=0)
    generator = prepare_generator(
        base, dataset.categories, "both", LocationGrid(8, 8), "error", resolution=64
    )
    layouts = read_layouts(dataset, None, "train")
    return generator, build_training_set(base, layouts, paths, folder / "training_set")


def train(folder: Path, death: str, options: dict) -> None:
    config = GeneratorConfig(**(OPTIONS | options))
    generator, training_set = prepare(folder)
    kind, _, number = death.partition(":")

    def on_step(metrics):
        if kind == "step" and metrics["step"] == int(number):
            die_once(folder, death)

    arm(folder, death)
    if kind == "host" or (kind == "rank" and os.environ["RANK"] == "1"):
        step = training.train_step

        def fatal_step(state, config, batches):
            if state.step == int(number):
                die_once(folder, death)
            return step(state, config, batches)

        training.train_step = fatal_step
    batch = make_batch(generator, training_set, config, 0)
    training.train_generator(
        generator,
        training_set,
        config,
        folder,
        "run",
        on_step=on_step,
        on_probe=lambda state: {"masks": len(training.predict_masks(state, batch)[0])},
    )
    if is_main_process():
        save_generator(generator, folder / "generator")


def train_forked(*arguments) -> None:
    """Train in a process that torchrun has forked."""
    from forked import react_as_spawned

    react_as_spawned()
    train(*arguments)


def main(folder: Path, death: str, options: dict, host: str) -> None:
    from forked import launch_forked

    launch_forked()
    arguments = folder, death, options
    folder.mkdir(exist_ok=True)
    if options.get("num_processes", 1) == 1:
        train(*arguments)
        return
    if host == "first":
        prepare(folder)
    count, hosts = options.get("num_nodes", 1), None
    if count > 1:
        hosts = Hosts(count, options["rdzv_endpoint"], "run", is_first=host == "first")
    run_distributed(
        train_forked, *arguments, num_processes=options["num_processes"] // count, hosts=hosts
    )
