"""Backbones that learn all of their weights: configs freeze parts of those that were pretrained."""

import inspect
from typing import Any

from models.detector.mmdetection import MODELS

_LEARNING = {"frozen_stages": -1, "norm_eval": False}
"""Options of MMDetection's backbones with which nothing is frozen."""


def unfreeze(model: dict[str, Any]) -> None:
    """Take back what a config says of its backbone's stages, statistics and norm layers."""
    backbone = model.get("backbone") or {}
    backbone.update({name: value for name, value in _LEARNING.items() if name in backbone})
    norm = backbone.get("norm_cfg") or {}
    if "requires_grad" in norm:
        norm["requires_grad"] = True


def unfreeze_unsaid(model: dict[str, Any]) -> None:
    """Give the options that a config leaves to its backbone, several of which keep their statistics then."""
    backbone = model.get("backbone") or {}
    kind = backbone.get("type")
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    for name, value in _LEARNING.items():
        if kind and name not in backbone and _default(kind, name, value) != value:
            backbone[name] = value


def _default(kind: type, name: str, absent: Any) -> Any:
    """Of an option of a class, or of one that it passes options on to."""
    for base in kind.__mro__:
        options = inspect.signature(base.__init__).parameters  # type: ignore[misc]  # of a class that is looked at
        if name in options:
            return options[name].default
        if not any(option.kind is option.VAR_KEYWORD for option in options.values()):
            break
    return absent
