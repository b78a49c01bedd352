"""Objects of other images, pasted into training images."""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from models.detector.mmdetection import TRANSFORMS, BitmapMasks, CopyPaste


@TRANSFORMS.register_module()
class PasteObjects(CopyPaste):  # type: ignore[misc]  # mmdet is untyped
    """MMDetection's CopyPaste with exact boxes; an object without a mask is pasted as its box.

    MMDetection takes the boxes of all objects that were there anew from masks, in whole pixels, and what is
    wholly covered in the top left corner stays with the box (0, 0, 0, 0), of which losses become NaN. Here
    an edge is as given unless what is left of the mask ends elsewhere, and boxes without area go. Masks are
    left out in the end: some detectors of boxes do else with them.
    """

    def get_gt_masks(self, results: dict[str, Any]) -> BitmapMasks:
        """Return an image's masks; where there is none, every pixel that the box touches."""
        boxes, (height, width) = results["gt_bboxes"].tensor, results["img"].shape[:2]
        masks = np.zeros((len(boxes), height, width), np.uint8)
        if "gt_masks" in results:
            masks[:] = results["gt_masks"].masks
        for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
            if not mask.any():
                mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 1
        return BitmapMasks(masks, height, width)

    def _copy_paste(
        self, dst_results: dict[str, Any], src_results: dict[str, Any]
    ) -> dict[str, Any]:
        is_pasted = self.get_gt_masks(src_results).masks.any(axis=0)
        masks = self.get_gt_masks(dst_results).masks
        left = masks * ~is_pasted
        before, after = _boxes(masks), _boxes(left)
        boxes = torch.where(after == before, dst_results["gt_bboxes"].tensor, after)
        is_near = ((after - before).abs() <= self.bbox_occluded_thr).all(dim=1).numpy()
        is_large = left.sum(axis=(1, 2)) > self.mask_occluded_thr
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).numpy()
        kept = has_area & (is_near | is_large)
        pasted = src_results["gt_bboxes"]
        return {name: value for name, value in dst_results.items() if name != "gt_masks"} | {
            "img": np.where(is_pasted[..., None], src_results["img"], dst_results["img"]),
            "gt_bboxes": type(pasted)(torch.cat([boxes[kept], pasted.tensor])),
            **{
                name: np.concatenate([dst_results[name][kept], src_results[name]])
                for name in ("gt_bboxes_labels", "gt_ignore_flags")
            },
        }


def _boxes(masks: UInt8[np.ndarray, "objects height width"]) -> Float[Tensor, "objects 4"]:
    """Boxes of what masks show, in whole pixels; zeros of those that show nothing."""
    return BitmapMasks(masks, *masks.shape[1:]).get_bboxes("hbox").tensor
