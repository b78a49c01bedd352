"""What the passes of a detector take: `models.counts` says what of it is known without counting."""

import json
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from data.errors import InvalidModel
from models.counting import counted_pass
from models.detector.config_files import read_config, set_everywhere
from models.detector.mask_heads import drop_mask_heads
from models.detector.mmdetection import MODELS, register_all_modules
from models.detector.options import DetectorConfig
from models.passes import ModelCount

_PADDED_TO = 32
"""Pixels that sides are a multiple of, see `build_config`."""

_REGIONS = {True: 512, False: 1000}
"""Of an image that Faster R-CNN's second stage looks at in training, and in use: MMDetection's configs."""


def count_model(options: str) -> ModelCount:
    """Count a detector with its config's classes: its network, not the losses and what chooses boxes.

    Args:
        options: as `detector_model` writes them.

    Raises:
        InvalidModel: its parts are called otherwise than those of one or two stages on feature maps.
    """
    settings = DetectorConfig.model_validate(json.loads(options))
    try:
        return _counted(settings)
    except Exception as error:  # networks that are called otherwise raise anything
        raise InvalidModel(
            f"detector config {settings.config!r} is not counted: {error}"
        ) from error


def _counted(settings: DetectorConfig) -> ModelCount:
    register_all_modules(init_default_scope=False)
    init_default_scope("mmdet")
    config = read_config(settings.config)
    config.merge_from_dict(dict(settings.overrides))
    set_everywhere(config.model, "init_cfg", None)
    drop_mask_heads(config.model)
    height, width = _input_size(*settings.image_size)

    def outputs(num_images: int) -> list[Tensor]:
        features = model.extract_feat(torch.empty(num_images, 3, height, width))
        if not hasattr(model, "roi_head"):
            return tree_leaves(model.bbox_head(features))
        count = num_images * _REGIONS[model.training]
        heads: Any = model.roi_head.bbox_head
        if not isinstance(heads, nn.ModuleList):  # of a cascade
            heads = [heads]
        shapes = [(count, head.in_channels, *head.roi_feat_size) for head in heads]
        second = [head(torch.empty(shape)) for head, shape in zip(heads, shapes, strict=True)]
        return tree_leaves((model.rpn_head(features), second))

    def train(num_images: int) -> None:
        losses = [item.float().square().mean() for item in outputs(num_images)]
        sum(item for item in losses if item.requires_grad).backward()  # type: ignore[union-attr]
        model.zero_grad()

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = MODELS.build(config.model).train()
        passes = {"train": counted_pass(train)}
        model.eval()
        with torch.no_grad():
            passes["forward"] = counted_pass(outputs)
    trained = [item for item in model.parameters() if item.requires_grad]
    return ModelCount(
        parameters=sum(item.numel() for item in model.parameters()),
        trained=sum(item.numel() for item in trained),
        tensors=len(trained),
        passes=passes,
    )


def _input_size(long: int, short: int) -> tuple[int, int]:
    """Height and width of an image of 4 to 3, as most of COCO's are, or of a square, padded.

    >>> _input_size(1333, 800), _input_size(640, 640)
    ((800, 1088), (640, 640))
    """
    width = long if long == short else min(long, short * 4 // 3)
    return -(-short // _PADDED_TO) * _PADDED_TO, -(-width // _PADDED_TO) * _PADDED_TO
