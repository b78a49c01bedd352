"""Named runs: the options in which they differ from the defaults, which are the paper's."""

from collections.abc import Mapping
from typing import Any, Literal

from data.layouts.options import PROTOCOLS
from models.generator.recipes import RELEASED_RATES

PresetName = Literal["smoke", "demo", "fine-tune", "coco-256", "coco-512"]


_DELETE = "_delete_"
"""MMEngine's mark of a mapping that takes the place of another instead of going over it."""


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested options over others; neither is changed.

    A mapping with `_delete_` takes the other's place, and keeps the mark for what it is laid over next. One
    that goes over the name of a rule for layouts goes over that rule.

    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    >>> merge({"a": {"x": 1, "y": 2}}, {"a": {"_delete_": True, "y": 3}})
    {'a': {'_delete_': True, 'y': 3}}
    >>> merge({"layouts": "lama-val"}, {"layouts": {"max_objects": 5}})["layouts"]["min_area_fraction"]
    0.02
    """
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        if isinstance(old, str) and old in PROTOCOLS:
            old = PROTOCOLS[old].model_dump()
        both = isinstance(old, Mapping) and isinstance(value, Mapping) and not value.get(_DELETE)
        merged[name] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def unmarked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out marks `_delete_` of what is inside; deeper ones in detectors' `overrides` are MMEngine's.

    >>> unmarked({"overrides": {"_delete_": True, "optimizer": {"_delete_": True}}})
    {'overrides': {'optimizer': {'_delete_': True}}}
    """
    left: dict[str, Any] = {}
    for name, value in options.items():
        left[name] = value
        if isinstance(value, Mapping):
            plain = {key: item for key, item in value.items() if key != _DELETE}
            left[name] = plain if name == "overrides" else unmarked(plain)
    return left


_FAST_INFERENCE = {
    "model.test_cfg.score_thr": 0.02,
    "model.test_cfg.max_per_img": 100,
    "model.test_cfg.nms_pre": 1000,
}
"""COCO metrics read 100 detections an image; more only cost time."""

_NARROW: dict[str, Any] = {
    "pretrained": False,
    "image_size": (64, 64),
    "batch_size": 8,
    "num_warmup_iterations": 50,
    "checkpoint_interval": 400,
    "num_workers": 0,
    "learning_rate": 0.004,
    "overrides": {
        "model.backbone.out_indices": [1, 2],
        "model.backbone.widen_factor": 0.25,
        "model.neck.in_channels": [32, 64],
        "model.neck.out_channels": 48,
        "model.bbox_head.in_channels": 48,
        "model.bbox_head.feat_channels": 48,
        "model.bbox_head.stacked_convs": 1,
        "optim_wrapper.paramwise_cfg": None,
        **_FAST_INFERENCE,
    },
}
"""A tiny one-stage detector, narrower, shallower and of two levels, for 64-pixel images.

MMDetection's decay by kind of parameter would make each a group, and a call of the optimiser, of its own.
"""

_RTMDET = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"

_RTMDET_NARROW = merge(
    _NARROW,
    {
        "config": _RTMDET,
        "overrides": {
            "model.backbone.arch_ovewrite": [
                [64, 128, 3, True, False],
                [128, 256, 6, False, True],
            ],
            "model.bbox_head.anchor_generator.strides": [4, 8],
            "optim_wrapper.optimizer.fused": True,
            "model.bbox_head.loss_cls.beta": 1.0,
            "model.bbox_head.loss_cls.loss_weight": 2.0,
            "model.train_cfg.assigner.topk": 5,
        },
    },
)

_SILU = {"type": "SiLU"}
"""In one kernel; mmcv's Swish, which is the same, takes two."""

_YOLOX_NARROW = merge(
    _NARROW,
    {
        "config": "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
        "overrides": {
            "model.backbone.arch_ovewrite": [
                [64, 128, 3, True, False],
                [128, 256, 3, False, True],
            ],
            "model.backbone.act_cfg": _SILU,
            "model.neck.act_cfg": _SILU,
            "model.bbox_head.act_cfg": _SILU,
            "model.bbox_head.strides": [4, 8],
            "optim_wrapper.optimizer": {
                "_delete_": True,
                "type": "AdamW",
                "weight_decay": 0.05,
                "fused": True,
            },
        },
    },
)

_FAST_SAMPLING = {
    "sampler": "dpm-solver++",
    "num_inference_steps": 12,
    "guidance_scale": 2.0,
    "batch_size": 64,
}

_DEMO: dict[str, Any] = {
    "ingest": {"scenes": {"num_train": 3500, "num_val": 500, "size": 64}},
    "train_detector": {**_YOLOX_NARROW, "num_epochs": 0, "num_iterations": 1200},
    "train_scorer": {**_RTMDET_NARROW, "num_epochs": 0, "num_iterations": 1200},
    "extract_attributes": {"labelling": {"score_threshold": 0.7}},
    "train_generator": {
        "base_model": {
            "block_out_channels": (64, 64, 128),
            "text_hidden_size": 64,
            "max_prompt_length": 48,
        },
        "resolution": 64,
        "layout_conditioning": "both",
        "location_grid": 16,
        "num_steps": 1900,
        "batch_size": 8,
        "base_batch_size": 8,
        "learning_rate": 1.5e-3,
        "text_learning_rate": 1e-3,
        "num_warmup_steps": 100,
        "timestep_sampling": "logit-normal",
        "ema_decay": 0.995,
        "probe": {"interval": 950, "sampling": _FAST_SAMPLING},
        "num_workers": 0,
        "checkpoint_interval": 600,
    },
    "synthesize": {
        "sampling": _FAST_SAMPLING,
        "num_train_layouts": 512,
        "num_val_layouts": 224,
        "images_per_val_layout": 1,
    },
    "retrain": {"detector": {**_YOLOX_NARROW, "num_epochs": 0, "num_iterations": 1200}},
    "evaluate": {"features": "random"},
}

_QUICK: dict[str, Any] = {
    "ingest": {"scenes": {"num_train": 48, "num_val": 16}},
    "train_detector": {"num_iterations": 8},
    "train_scorer": {"num_iterations": 8},
    "train_generator": {
        "base_model": {"decoder_steps": 20},
        "num_steps": 12,
        "batch_size": 8,
        "checkpoint_interval": 4,
        "probe": {"interval": 6, "num_layouts": 4, "sampling": {"num_inference_steps": 3}},
    },
    "synthesize": {
        "sampling": {"num_inference_steps": 3, "batch_size": 8},
        "num_train_layouts": 8,
        "num_val_layouts": 8,
    },
    "retrain": {"detector": {"num_iterations": 8}},
}

_SMALL_DETECTOR = {"image_size": ..., "num_epochs": ...}
"""Names of options, which stay as they are."""

_KEPT: dict[str, dict[str, Any]] = {
    "smoke": merge(
        _QUICK,
        {
            "train_detector": _SMALL_DETECTOR,
            "train_scorer": _SMALL_DETECTOR,
            "train_generator": {"base_model": ..., "resolution": ..., "num_epochs": ...},
            "pretrain_generator": {"num_steps": 12},
            "retrain": {"detector": _SMALL_DETECTOR, "others": ...},
        },
    )
}
"""Options by preset in which a file, which is written for another preset, does not change it."""


def kept(preset: str, file: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What of a file's options a preset takes, and the dotted names of those that it keeps as its own.

    `smoke` keeps what makes it quick: base model, sizes, lengths, no detectors beside its own, and of a
    pre-training a few steps; a section with `_delete_` is as given.
    """
    return _without(file, _KEPT.get(preset, {}))


def _without(
    options: Mapping[str, Any], own: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Any], list[str]]:
    left, names = dict(options), []
    for name in own.keys() & left.keys():
        given = left[name]
        if not isinstance(own[name], Mapping):
            names.append(f"{prefix}{name}")
            del left[name]
            if own[name] is not ...:
                left[name] = own[name]
        elif isinstance(given, Mapping) and not given.get(_DELETE):
            left[name], inner = _without(given, own[name], f"{prefix}{name}.")
            names += inner
    return left, sorted(names)


_FASTER_RCNN = {"config": "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"}

_RTMDET_TINY = {
    "config": _RTMDET,
    "image_size": (640, 640),
    "overrides": {"auto_scale_lr.base_batch_size": 256},  # that of its rate
}

_TWICE = {"num_epochs": 24}
"""MMDetection's schedule 2x."""

_FINE_TUNE: dict[str, Any] = {
    "ingest": {},
    "train_detector": {**_FASTER_RCNN, **_TWICE},
    "train_scorer": {**_RTMDET_TINY, **_TWICE, "config_hooks": True},
    "extract_attributes": {},
    "train_generator": {
        "recipe": "geodiffusion",
        **RELEASED_RATES,
        "batch_size": 8,
        "num_epochs": 60,
        "num_steps": 0,
        "num_warmup_steps": 500,
        "checkpoint_interval": 500,
        "probe": {"interval": 500},
    },
    "synthesize": {"images_per_val_layout": 1},
    "retrain": {"detector": {**_FASTER_RCNN, **_TWICE}},
    "evaluate": {},
}
"""Data of a user's on one GPU; `ingest.train` and `ingest.val` are theirs to give."""

_COCO_LAYOUTS = {"min_area_fraction": 0.02, "max_objects": 8}


def _coco(resolution: int, guidance_scale: float, **rates: float) -> dict[str, Any]:
    """COCO at paper scale; `ingest.train` and `ingest.val` are the user's to give.

    Args:
        rates: of the generator and the batch that they are stated for, over its recipe's.
    """
    return {
        "ingest": {},
        "layouts": _COCO_LAYOUTS,
        "train_detector": _FASTER_RCNN,
        "train_scorer": {
            "config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
            "image_size": (640, 640),
            "config_hooks": True,
        },
        "extract_attributes": {},
        "train_generator": {
            "recipe": "geodiffusion",
            "resolution": resolution,
            "num_epochs": 60,
            "num_steps": 0,
            **rates,
            "probe": {"sampling": {"guidance_scale": guidance_scale}},
        },
        "synthesize": {
            "sampling": {"guidance_scale": guidance_scale},
            "train_layouts": {**_COCO_LAYOUTS, "min_objects": 3},
            "val_layouts": "lama-val",
        },
        "retrain": {
            "detector": _FASTER_RCNN,
            "others": {"rtmdet": _RTMDET_TINY},
        },
        "evaluate": {},
    }


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": merge(_DEMO, _QUICK),
    "demo": _DEMO,
    "fine-tune": _FINE_TUNE,
    "coco-256": _coco(256, guidance_scale=4.0, **RELEASED_RATES),
    "coco-512": _coco(
        512,
        guidance_scale=4.5,
        learning_rate=4e-5,
        text_learning_rate=3e-5,
        base_batch_size=64,
    ),
}
"""Preset name to the options in which it differs from the defaults, which are the paper's."""
