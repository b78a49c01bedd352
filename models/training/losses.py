"""The loss of DetDiffusion: L = L_ldm + λ L_p. Pure functions of tensors."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def foreground_weights(
    boxes_latent: Float[Tensor, "batch objects 4"],
    is_foreground: Bool[Tensor, "batch objects"],
    height: int,
    width: int,
    weight: float = 2.0,
    power: float = 0.2,
    overlap: Literal["smallest", "last"] = "smallest",
) -> Float[Tensor, "batch height width"]:
    """GeoDiffusion's foreground re-weighting map m, of mean 1 over each latent grid.

    A cell whose centre lies in a foreground box gets m' = w / c^p with
    c = (box height + 1)(box width + 1) in latent cells, any other cell m' = 1 / (H W)^p, and
    m = H W m' / Σ m'.

    Args:
        boxes_latent: xyxy in latent cells; rows with `is_foreground` false are ignored.
        weight: w.
        power: p.
        overlap: the box that wins where several overlap; `last` is the released code's map, for which
            boxes are rounded to whole cells before all else.

    >>> boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    >>> m = foreground_weights(boxes, torch.tensor([[True]]), 2, 2, weight=2.0, power=0.0)
    >>> m[0].tolist()
    [[1.600000023841858, 0.800000011920929], [0.800000011920929, 0.800000011920929]]
    """
    if overlap == "last":
        boxes_latent = boxes_latent.round()
    x = torch.arange(width, device=boxes_latent.device) + 0.5
    y = torch.arange(height, device=boxes_latent.device) + 0.5
    left, top, right, bottom = boxes_latent.unbind(dim=-1)
    in_columns = (x >= left[..., None]) & (x < right[..., None])
    in_rows = (y >= top[..., None]) & (y < bottom[..., None])
    inside = in_rows[..., :, None] & in_columns[..., None, :] & is_foreground[..., None, None]
    sizes = (bottom - top + 1) * (right - left + 1)
    owner_sizes = torch.where(inside, sizes[..., None, None], torch.inf)
    if overlap == "last":
        order = torch.arange(1, sizes.shape[1] + 1, device=sizes.device)[:, None, None]
        last = (inside * order).argmax(dim=1, keepdim=True)
        chosen = owner_sizes.gather(1, last)[:, 0]
    else:
        chosen = owner_sizes.amin(dim=1)
    background = float(height * width) ** -power
    raw = torch.where(chosen.isinf(), background, weight * chosen**-power)
    return raw / raw.mean(dim=(1, 2), keepdim=True)


def min_snr_weights(
    alphas_cumprod: Float[Tensor, " batch"], gamma: float, prediction_type: str
) -> Float[Tensor, " batch"]:
    """Min-SNR-γ loss weights (Hang et al., ICCV 2023) for ε- or v-prediction.

    With SNR = ᾱ / (1 - ᾱ): min(SNR, γ) / SNR for ε, min(SNR, γ) / (SNR + 1) for v.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    clipped = snr.clamp(max=gamma)
    return clipped / (snr + 1) if prediction_type == "v_prediction" else clipped / snr


def denoising_loss(
    prediction: Float[Tensor, "batch channels height width"],
    target: Float[Tensor, "batch channels height width"],
    cell_weights: Float[Tensor, "batch height width"],
    sample_weights: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """L_ldm = mean(m ⊙ (target - prediction)²), samples weighted."""
    squared = (target.float() - prediction.float()).square().mean(dim=1)
    return ((squared * cell_weights).mean(dim=(1, 2)) * sample_weights).mean()


def mask_loss(
    logits: Float[Tensor, "batch objects height width"],
    target: Float[Tensor, "batch objects height width"],
    valid: Bool[Tensor, "batch objects"],
) -> Float[Tensor, " batch"]:
    """L_m of the instance head: binary cross-entropy, averaged over each sample's valid objects."""
    per_object = functional.binary_cross_entropy_with_logits(
        logits.float(), target, reduction="none"
    ).mean(dim=(2, 3))
    return _mean_over_objects(per_object, valid)


def class_loss(
    logits: Float[Tensor, "batch classes height width"],
    target: Float[Tensor, "batch classes height width"],
) -> Float[Tensor, " batch"]:
    """L_m of the semantic head: per-pixel cross-entropy against shares that sum to 1.

    >>> round(class_loss(torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), 0.25)).exp().item(), 5)
    4.0
    """
    return functional.cross_entropy(logits.float(), target, reduction="none").mean(dim=(1, 2))


def dice_loss(
    probability: Float[Tensor, "batch objects height width"],
    target: Float[Tensor, "batch objects height width"],
    valid: Bool[Tensor, "batch objects"],
) -> Float[Tensor, " batch"]:
    """L_d: 1 - (2 Σ p g + 1) / (Σ p + Σ g + 1), averaged over each sample's valid objects."""
    overlap = (probability * target).sum(dim=(2, 3))
    total = probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3))
    return _mean_over_objects(1 - (2 * overlap + 1) / (total + 1), valid)


def _mean_over_objects(
    values: Float[Tensor, "batch objects"], valid: Bool[Tensor, "batch objects"]
) -> Float[Tensor, " batch"]:
    return (values * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)


def perception_loss(
    mask_losses: Float[Tensor, " batch"],
    dice_losses: Float[Tensor, " batch"],
    alphas_cumprod: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """L_p = sqrt(ᾱ_t) (L_m + L_d), averaged over the batch (paper section 3.3).

    >>> perception_loss(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.25])).item()
    0.75
    """
    return (alphas_cumprod.sqrt() * (mask_losses + dice_losses)).mean()


def mask_iou(
    predicted: Bool[Tensor, "batch objects height width"],
    target: Float[Tensor, "batch objects height width"],
    valid: Bool[Tensor, "batch objects"],
) -> Float[Tensor, ""]:
    """Mean IoU with masks of at least half a cell, over all valid objects; NaN if there is none."""
    true = target >= 0.5
    overlap = (predicted & true).sum(dim=(2, 3)).float()
    union = (predicted | true).sum(dim=(2, 3)).float()
    return torch.where(valid, overlap / union.clamp(min=1), torch.nan).nanmean()
