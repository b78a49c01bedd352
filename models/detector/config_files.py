"""MMDetection configs, completed for training on COCO folders."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hub import get_config

from data.errors import InvalidConfig
from models.detector.config_sources import dotted
from models.detector.from_scratch import unfreeze, unfreeze_unsaid
from models.detector.mask_heads import drop_mask_heads, type_name
from models.detector.options import DetectorConfig


@dataclass(frozen=True, slots=True)
class CocoFolder:
    """A COCO data set on disk.

    Attributes:
        annotations: an instances file.
        images: folder that its file names are relative to.
        has_masks: whether the file has one of every object; otherwise boxes are pasted.
        is_pasted_into: whether copy-paste changes these images.
    """

    annotations: Path
    images: Path
    has_masks: bool = False
    is_pasted_into: bool = True


@dataclass(frozen=True, slots=True)
class Mixture:
    """How images of further data sets come among those of the first.

    Attributes:
        added_share: their share of what is read, while they are.
        num_mixed: so many images are read until those of the first data set are alone.
    """

    added_share: float
    num_mixed: int

    @property
    def num_added(self) -> int:
        """Images of further data sets that are read in all."""
        return round(self.added_share * self.num_mixed)


def build_config(
    settings: DetectorConfig,
    train_sets: Sequence[CocoFolder],
    categories: dict[int, str],
    work: Path,
    mixture: Mixture | None = None,
) -> Config:
    """Complete an MMDetection config for training on COCO folders.

    Args:
        train_sets: concatenated in this order.
        categories: COCO category id to name, in label order.
        work: folder for checkpoints.
        mixture: of the first and the other training sets; None: in proportion to their sizes.

    Raises:
        InvalidConfig: the config name or an override does not exist, or it asks for what is not done here.
    """
    is_random = not settings.pretrained and not settings.load_from
    try:
        config = read_config(settings.config)
        set_everywhere(config.model, "num_classes", len(categories))
        if not settings.pretrained:
            set_everywhere(config.model, "init_cfg", None)
        if is_random:
            unfreeze(config.model)
        if settings.mixed_precision == "no":
            config.optim_wrapper = _in_full_precision(config.optim_wrapper)
        config.model.data_preprocessor["pad_size_divisor"] = 32
        config.model.data_preprocessor["batch_augments"] = None
        config["custom_hooks"] = _own_hooks(settings, config) if settings.config_hooks else []
        config.merge_from_dict(_training_options(settings, work))
        config.merge_from_dict(_data_options(settings, train_sets, categories, mixture))
        config.merge_from_dict(dotted(settings.overrides))
        if is_random:
            unfreeze_unsaid(config.model)
        drop_mask_heads(config.model)
        _require_own_start_and_batch(settings, config)
        if settings.num_processes > 1:
            config.merge_from_dict(_data_parallel_options(config))
        config.optim_wrapper.optimizer["lr"] = settings.learning_rate or _own_rate(settings, config)
        config["auto_scale_lr"] = None  # MMEngine would scale it once more
    except (OSError, SyntaxError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise InvalidConfig(
            f"detector config {settings.config!r} with overrides {settings.overrides}: {error}"
        ) from error
    return config


def learning_rate(
    settings: DetectorConfig, train_sets: Sequence[CocoFolder], categories: dict[int, str]
) -> float:
    """That of a training after its warm-up.

    Raises:
        InvalidConfig: as `build_config`.
    """
    config = build_config(settings, train_sets, categories, Path())
    return float(config.optim_wrapper.optimizer.lr)


def read_config(name: str) -> Config:
    """Read a packaged config (`mmdet::…`) or a file, without its validation and test."""
    config = get_config(name) if name.startswith("mmdet::") else Config.fromfile(name)
    # MMEngine writes it with every checkpoint, and took half a second each time to break its long lines.
    object.__setattr__(config, "_format_python_code", False)
    for split in ("val", "test"):
        for part in ("dataloader", "cfg", "evaluator"):
            config[f"{split}_{part}"] = None
    return config


def set_everywhere(node: Any, name: str, value: Any) -> None:
    """Set a key wherever it occurs in a nested config."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        set_everywhere(child, name, value)
    if isinstance(node, dict) and name in node:
        node[name] = value


def _own_hooks(settings: DetectorConfig, config: Config) -> list[dict[str, Any]]:
    """The config's hooks, their epochs turned into the same shares of the training.

    Images are only resized and flipped here. So hooks that end a stronger augmentation have none to end: of
    YOLOX's stays the loss that it adds, and MMDetection's `PipelineSwitchHook` is left out.
    """

    def iterations(epochs: float) -> int:
        return round(settings.num_iterations * epochs / config.train_cfg.max_epochs)

    hooks = []
    for hook in config.get("custom_hooks") or ():
        name = type_name(hook["type"])
        if name == "YOLOXModeSwitchHook":
            begin = settings.num_iterations - iterations(hook.get("num_last_epochs", 15))
            hooks.append({"type": "LateL1LossHook", "begin": begin})
        elif name == "EMAHook" and hook.get("begin_epoch"):
            hooks.append({**hook, "begin_epoch": 0, "begin_iter": iterations(hook["begin_epoch"])})
        elif name != "PipelineSwitchHook":
            hooks.append(hook)
    return hooks


def _own_rate(settings: DetectorConfig, config: Config) -> float:
    """The config's learning rate for another batch, by MMDetection's linear rule.

    Raises:
        ValueError: the config does not say for which batch its rate is, or has none.
    """
    rate = config.optim_wrapper.optimizer.get("lr")
    base = (config.get("auto_scale_lr") or {}).get("base_batch_size")
    if not rate or not base:
        raise ValueError(
            "learning_rate is null, and optim_wrapper.optimizer.lr or auto_scale_lr.base_batch_size is "
            "not there to take it from: give learning_rate"
        )
    return float(rate * settings.batch_size / base)


def _require_own_start_and_batch(settings: DetectorConfig, config: Config) -> None:
    """Leave the checkpoint to start from and the images of a step to our options.

    Raises:
        ValueError: the config has another, which would be left out, or come on top.
    """
    if config.get("load_from") and not settings.load_from:
        raise ValueError(
            f"load_from {config.load_from!r} is not read from a config: give the option load_from that "
            'checkpoint\'s file, or the override load_from = "" to start without'
        )
    config["load_from"] = None
    count = config.optim_wrapper.get("accumulative_counts") or 1
    if count > 1:
        raise ValueError(
            f"optim_wrapper.accumulative_counts is {count}, and an optimiser step is of batch_size images: "
            f"override it with 1 and give batch_size = {count * settings.batch_size}"
        )


def _training_options(settings: DetectorConfig, work: Path) -> dict[str, Any]:
    warmup = min(settings.num_warmup_iterations, settings.num_iterations // 10)
    scheduler = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": warmup},
        {
            "type": "CosineAnnealingLR",
            "by_epoch": False,
            "begin": warmup,
            "end": settings.num_iterations,
            "T_max": settings.num_iterations - warmup,
            "eta_min_ratio": 0.01,
        },
    ]
    return {
        "work_dir": str(work),
        "default_scope": "mmdet",
        "log_level": "WARNING",
        "randomness": {"seed": settings.seed},
        "train_cfg": {
            "_delete_": True,
            "type": "IterBasedTrainLoop",
            "max_iters": settings.num_iterations,
            "val_interval": settings.num_iterations + 1,
        },
        "param_scheduler": scheduler[0 if warmup else 1 :],
        **_precision_options(settings.mixed_precision),
        "default_hooks.checkpoint": {
            "_delete_": True,
            "type": "CheckpointHook",
            "by_epoch": False,
            "interval": settings.checkpoint_interval,
            "max_keep_ckpts": 2,
        },
        "default_hooks.logger": {"_delete_": True, "type": "LoggerHook", "interval": 10**9},
    }


def _in_full_precision(wrapper: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's wrapper without MMEngine's automatic mixed precision."""
    if type_name(wrapper.get("type")) != "AmpOptimWrapper":
        return wrapper
    kept = {k: v for k, v in wrapper.items() if k not in {"loss_scale", "dtype", "use_fsdp"}}
    return kept | {"type": "OptimWrapper"}


def _precision_options(precision: str) -> dict[str, Any]:
    """MMEngine's automatic mixed precision.

    Raises:
        ValueError: there is no GPU, without which MMEngine has none.
    """
    if precision == "no":
        return {}
    if not torch.cuda.is_available():
        raise ValueError(f"mixed_precision={precision} needs a GPU, and there is none")
    types = {"fp16": "float16", "bf16": "bfloat16"}
    return {"optim_wrapper.type": "AmpOptimWrapper", "optim_wrapper.dtype": types[precision]}


def _data_parallel_options(config: Config) -> dict[str, Any]:
    """MMEngine's distributed training; on GPUs, which alone can, processes share a batch's statistics."""
    options: dict[str, Any] = {"launcher": "pytorch"}
    if torch.cuda.is_available():
        return options | {"sync_bn": "torch"}
    unused = config.get("find_unused_parameters", False)
    wrapper = {"device_ids": None, "broadcast_buffers": False, "find_unused_parameters": unused}
    return options | {"model_wrapper_cfg": wrapper}


def _training_data(
    settings: DetectorConfig, folder: CocoFolder, categories: dict[int, str]
) -> dict[str, Any]:
    """A data set as MMDetection reads it for training."""
    is_pasted_into = folder.is_pasted_into and settings.augmentation == "copy-paste"
    masks = folder.has_masks and is_pasted_into
    data: dict[str, Any] = {
        "type": "CocoDataset",
        "ann_file": str(folder.annotations),
        "data_prefix": {"img": str(folder.images)},
        "metainfo": {"classes": tuple(categories.values())},
        "filter_cfg": {"filter_empty_gt": False},
        "pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks},
            {"type": "Resize", "scale": settings.image_size, "keep_ratio": True},
            {"type": "RandomFlip", "prob": 0.5},
        ],
    }
    if not is_pasted_into:
        data["pipeline"].append({"type": "PackDetInputs"})
        return data
    side = max(settings.image_size)
    data["pipeline"].append({"type": "Pad", "size": (side, side)})  # images of one size are pasted
    steps = [{"type": "PasteObjects"}, {"type": "PackDetInputs"}]
    return {"type": "MultiImageMixDataset", "dataset": data, "pipeline": steps}


def _data_options(
    settings: DetectorConfig,
    train_sets: Sequence[CocoFolder],
    categories: dict[int, str],
    mixture: Mixture | None,
) -> dict[str, Any]:
    datasets = [_training_data(settings, folder, categories) for folder in train_sets]
    metadata = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return {
        "train_dataloader": {
            "_delete_": True,
            "batch_size": settings.batch_size // settings.num_processes,
            "num_workers": settings.num_workers,
            "persistent_workers": settings.num_workers > 0,
            "sampler": {
                "type": "PlaceSampler",
                "shuffle": True,
                **(asdict(mixture) if mixture else {}),
            },
            "dataset": {
                "type": "SeededConcatDataset",
                "datasets": datasets,
                "seed": settings.seed,
            },
        },
        "test_pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "Resize", "scale": settings.image_size, "keep_ratio": True},
            {"type": "PackDetInputs", "meta_keys": metadata},
        ],
    }
