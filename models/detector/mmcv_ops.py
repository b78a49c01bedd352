"""The compiled operators that MMDetection's common detectors need, on torchvision's kernels.

`mmcv-lite` holds the Python half of mmcv; its compiled half, the module `mmcv._ext`, takes tens of
minutes to build. `install_mmcv_ops` puts this small substitute in its place where no compiled mmcv
is present, so that an installation needs wheels only. Operators not listed here raise
`NotImplementedError` when called.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms
from torchvision.ops import roi_align, sigmoid_focal_loss


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices kept by greedy non-maximum suppression, best score first."""
    if offset != 0:
        raise NotImplementedError(
            "nms with offset=1 needs a compiled mmcv (pip install mmcv==2.1.0)"
        )
    return torchvision_nms(boxes, scores, iou_threshold)


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average-pool regions of interest into `output`."""
    if pool_mode != 1:
        raise NotImplementedError(
            "max-pooled RoIAlign needs a compiled mmcv (pip install mmcv==2.1.0)"
        )
    size = (aligned_height, aligned_width)
    output.copy_(roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its input into `grad_input`."""
    if grad_output.dtype == torch.bfloat16:  # torchvision has no kernel for it
        grad_output, rois = grad_output.float(), rois.float()
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(  # noqa: SLF001  # no public name
            grad_output,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, *, gamma: float, alpha: float
) -> None:
    """Write the focal loss of every (box, class) logit into `output`; target C is background."""
    output.copy_(_focal_loss(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    *,
    gamma: float,
    alpha: float,
) -> None:
    """Write the gradient of the summed focal loss with respect to the logits into `grad_input`."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = _focal_loss(leaf, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, leaf)[0])


def _focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    one_hot = torch.nn.functional.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits)
    loss = sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=gamma)
    if weight.numel() == 0:
        return loss
    padded = torch.cat([weight, weight.new_ones(1)])
    return loss * padded[target][:, None]


_OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        nms,
        roi_align_forward,
        roi_align_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
    )
}


class _OperatorModule(ModuleType):
    """A module in which every operator name exists, as `mmcv.ops` checks at import."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _OPERATORS:
            return _OPERATORS[name]

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(
                f"operator {name} needs a compiled mmcv (pip install mmcv==2.1.0)"
            )

        return missing


def install_mmcv_ops() -> None:
    """Make `mmcv.ops` importable; call before the first import of `mmdet.models`."""
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        module = _OperatorModule("mmcv._ext")
        module.__spec__ = ModuleSpec("mmcv._ext", loader=None)
        sys.modules["mmcv._ext"] = module
