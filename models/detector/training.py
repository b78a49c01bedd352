"""Training MMDetection detectors with MMEngine's runner; a killed training goes on."""

import logging
import math
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from data.errors import InvalidConfig, InvalidModel, TrainingDiverged
from models.detector import pasting  # noqa: F401  # registers what the configs name
from models.detector.checkpoints import read_checkpoint
from models.detector.config_files import CocoFolder, Mixture, build_config
from models.detector.detector import write_detector
from models.detector.exported_config import require_exportable
from models.detector.mmdetection import HOOKS, register_all_modules
from models.detector.options import DetectorConfig
from models.detector.seeded_data import random_state  # which registers what the configs name, too
from models.newest_checkpoint import newest_checkpoint
from models.processes import is_main_process, process_group

logger = logging.getLogger(__name__)

_WORK_FOLDER_SCHEME = "work-folder:"
"""Checkpoints of this training."""


class _ProgressHook(Hook):  # type: ignore[misc]  # mmengine is untyped
    """Reports every step's losses to a callback, of several processes each its own, and ends at NaN."""

    def __init__(self, on_step: Callable[[int, dict[str, float]], None]) -> None:
        self._on_step = on_step

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        losses = {k: float(v) for k, v in (outputs or {}).items() if "loss" in k}
        if not math.isfinite(losses.get("loss", 0)):
            raise TrainingDiverged(
                f"step {runner.iter + 1}: the loss is {losses['loss']}. Lower learning_rate "
                f"({runner.cfg.optim_wrapper.optimizer.lr:g}) and run again: finished stages are kept"
            )
        self._on_step(runner.iter + 1, losses)


class _StartHook(Hook):  # type: ignore[misc]  # likewise
    """Puts a checkpoint's weights over the initial ones, where the training is not resumed."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    def before_train(self, runner: Runner) -> None:
        if runner.iter:
            return
        weights = read_checkpoint(self._checkpoint).weights
        own = _model(runner).state_dict()
        fitting = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
        if not fitting:
            raise InvalidModel(
                f"detector checkpoint {self._checkpoint}: none of its {len(weights)} weights fits the config"
            )
        load_state_dict(runner.model, fitting)
        logger.info("%d of %d weights from %s", len(fitting), len(own), self._checkpoint)


@HOOKS.register_module()
class LateL1LossHook(Hook):  # type: ignore[misc]  # likewise
    """YOLOX's further loss of the last epochs.

    Args:
        begin: iteration from which on it has effect.
    """

    def __init__(self, begin: int) -> None:
        self._begin = begin

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Turn it on, also in a training that was resumed."""
        _model(runner).bbox_head.use_l1 = runner.iter >= self._begin  # type: ignore[union-attr]


class _ResumeHook(Hook):  # type: ignore[misc]  # likewise
    """Lets a resumed training draw and read what it had not, and nothing twice.

    MMEngine's loop takes as many batches as there were steps, and drops them; here they are empty, and
    the sampler begins with the next one. Faster R-CNN's boxes are drawn from torch's global generator.
    What MMEngine smooths for its log is left out: these are objects, for which reading runs code.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        info = {k: v for k, v in checkpoint["message_hub"]["runtime_info"].items() if k != "eta"}
        checkpoint["message_hub"] = {
            "log_scalars": {},
            "runtime_info": info,
            "resumed_keys": dict.fromkeys(info, True),
        }
        checkpoint["random_states"] = {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all()[:1],
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        states = checkpoint["random_states"]
        torch.set_rng_state(states["cpu"].cpu())
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        loop.dataloader_iterator = chain(repeat(None, runner.iter), loop.dataloader_iterator)


class _SeedHook(Hook):  # type: ignore[misc]  # likewise
    """Has each of several processes draw by seed, step and its number: a checkpoint has the state of one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(int(random_state(self._seed, runner.iter, get_rank())[0]))


class _Runner(Runner):  # type: ignore[misc]  # likewise
    """MMEngine's, of a model whose channels are last; statistics that processes share are for GPUs."""

    def wrap_model(self, model_wrapper_cfg: Any, model: nn.Module) -> nn.Module:
        model = model.to(memory_format=torch.channels_last)
        if not torch.cuda.is_available():
            model = revert_sync_batchnorm(model)
        return super().wrap_model(model_wrapper_cfg, model)


def _model(runner: Runner) -> nn.Module:
    """The detector itself."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _load_own_checkpoint(filename: str, map_location: Any = None) -> Any:
    path = filename.removeprefix(_WORK_FOLDER_SCHEME)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidConfig(
            f"{path} holds more than tensors and numbers, by an earlier version or a hook or optimiser of "
            "the config, and is not read: delete it and the iter_*.pth beside it, and the training begins "
            f"anew ({error})"
        ) from error


def _num_steps(checkpoint: Path) -> int:
    """Steps made until MMEngine wrote a checkpoint: `iter_1000.pth`."""
    return int(checkpoint.stem.removeprefix("iter_"))


def _end_loading(runner: Runner) -> None:
    """End the processes that load images. If the garbage collector did, it would wait 5 s for each."""
    loop = runner._train_loop  # noqa: SLF001  # the property builds one that is not there yet
    if isinstance(loop, BaseLoop):
        loop.dataloader_iterator = loop.dataloader._iterator = None  # noqa: SLF001  # a second reference


def train_detector(
    settings: DetectorConfig,
    train_sets: Sequence[CocoFolder],
    categories: dict[int, str],
    work: Path,
    out: Path,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    mixture: Mixture | None = None,
) -> None:
    """Train a detector and export it to `out`; a killed run goes on from its newest checkpoint.

    Where a hook averages the weights, the average is exported, as MMEngine evaluates it. Several processes,
    each calling this under `torchrun`, share every batch.

    Args:
        settings: with the number of iterations.
        train_sets: COCO folders, concatenated.
        categories: COCO category id to name, in label order.
        work: folder for resumable checkpoints.
        out: folder to create, readable by `Detector.load`.
        on_step: called with the step's number, from 1, and its losses.
        mixture: of the first and the other training sets; None: in proportion to their sizes.

    Raises:
        InvalidConfig: the config name or an override does not exist, the detector could not be loaded
            again, or a checkpoint holds objects.
        InvalidModel: nothing in the checkpoint to start from fits.
        TrainingDiverged: a loss became NaN or infinite.
    """
    register_all_modules(init_default_scope=True)
    config = build_config(settings, train_sets, categories, work, mixture)
    require_exportable(settings.config, config)
    checkpoint = newest_checkpoint(sorted(work.glob("iter_*.pth"), key=_num_steps))
    if checkpoint:
        CheckpointLoader.register_scheme(_WORK_FOLDER_SCHEME, _load_own_checkpoint, force=True)
        config.load_from, config.resume = f"{_WORK_FOLDER_SCHEME}{checkpoint}", True
        config.train_dataloader.sampler.start = _num_steps(checkpoint) * settings.batch_size
        logger.info("resuming detector training from %s", checkpoint.name)
    together = settings.num_processes > 1
    with process_group(settings.distributed_backend) if together else nullcontext():
        model = _trained(config, settings, on_step)
        if is_main_process():
            write_detector(out, model, config, list(categories.items()))


def _trained(
    config: Config, settings: DetectorConfig, on_step: Callable[[int, dict[str, float]], None]
) -> nn.Module:
    try:
        runner = _Runner.from_cfg(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidConfig(
            f"detector config {settings.config!r} cannot be built: {error}"
        ) from error
    runner.register_hook(_ProgressHook(on_step), priority="LOWEST")
    runner.register_hook(_ResumeHook())
    if settings.num_processes > 1:
        runner.register_hook(_SeedHook(settings.seed))
    if settings.load_from:
        runner.register_hook(_StartHook(settings.load_from))
    try:
        runner.train()
    finally:
        _end_loading(runner)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            hook.before_test_epoch(runner)  # swaps the weights and their average
    return _model(runner)
