"""Detectors of boxes out of configs that have them find masks too: here only boxes are trained on."""

from collections.abc import Iterator
from typing import Any

_BOXES_ALONE = {"StandardRoIHead", "CascadeRoIHead", "SparseRoIHead"}
"""Second stages that work without their mask head, as in Mask, Cascade Mask R-CNN and QueryInst."""

_NEED_MASKS = {"mask_head", "panoptic_head", "semantic_head", "segm_head", "loss_mask"}
"""Parts that are trained on masks."""


_MASKS_OF_BOXES = {"BoxInst"}
"""Detectors that make the masks that they are trained on."""


def drop_mask_heads(model: dict[str, Any]) -> None:
    """Take the mask head from a second stage that works without.

    Raises:
        ValueError: something is left that is trained on masks.
    """
    roi_head = model.get("roi_head") or {}
    if roi_head.get("mask_head") and type_name(roi_head.get("type")) in _BOXES_ALONE:
        roi_head.update(mask_head=None, mask_roi_extractor=None)
    if found := sorted(set(_mask_parts(model))):
        raise ValueError(
            f"{', '.join(found)} would be trained on masks, and detectors here are trained on boxes: give "
            "the config of a detector of boxes"
        )


def type_name(kind: Any) -> str:
    """The last part of a type: text, perhaps with its registry, or a class."""
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _mask_parts(node: Any) -> Iterator[str]:
    if isinstance(node, list | tuple):
        for item in node:
            yield from _mask_parts(item)
    elif isinstance(node, dict) and type_name(node.get("type")) not in _MASKS_OF_BOXES:
        for name, value in node.items():
            if name in _NEED_MASKS and value:
                yield name
            yield from _mask_parts(value)
