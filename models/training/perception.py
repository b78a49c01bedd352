"""Perception heads: masks from the UNet's decoder features, used in training only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from models.training.losses import class_loss, dice_loss, mask_loss


@contextmanager
def captured_features(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Collect the outputs of the UNet's up blocks, coarse to fine, during its next forward pass."""
    features: list[Tensor] = []

    def capture(module: nn.Module, inputs: object, output: Tensor) -> None:
        features.append(output)

    handles = [block.register_forward_hook(capture) for block in unet.up_blocks]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()


class _CellEmbedding(nn.Module):
    """Up-block outputs → 1×1 convolution → resize to the latent grid → sum → two convolutions."""

    def __init__(self, feature_channels: Sequence[int], hidden_channels: int, out_channels: int):
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, hidden_channels, 1) for channels in feature_channels
        )
        self.embedding = nn.Sequential(
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden_channels, out_channels, 3, padding=1),
        )

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        resized = [
            functional.interpolate(project(feature), size, mode="bilinear")
            for project, feature in zip(self.projections, features, strict=True)
        ]
        return self.embedding(torch.stack(resized).sum(dim=0))


class InstanceHead(nn.Module):
    """One mask per prompt box, queried by the box's own token states.

    A box's mask logits are its query's inner products with the embeddings of the cells.

    Args:
        feature_channels: channels of each up block's output.
        text_channels: width of the text encoder's states.
        hidden_channels: width of the head.
    """

    def __init__(
        self, feature_channels: Sequence[int], text_channels: int, hidden_channels: int = 64
    ):
        super().__init__()
        self.cells = _CellEmbedding(feature_channels, hidden_channels, hidden_channels)
        self.query = nn.Sequential(
            nn.Linear(text_channels, hidden_channels),
            nn.SiLU(),
            nn.Linear(hidden_channels, hidden_channels + 1),
        )

    def forward(
        self,
        features: Sequence[Float[Tensor, "batch _channels _height _width"]],
        token_states: Float[Tensor, "batch tokens text"],
        token_weights: Float[Tensor, "batch objects tokens"],
        size: tuple[int, int],
    ) -> Float[Tensor, "batch objects height width"]:
        """Predict mask logits.

        Args:
            features: outputs of the UNet's up blocks.
            token_states: text encoder's last hidden states.
            token_weights: averages a box's own tokens; each row sums to 1, or to 0 for padding.
            size: (height, width) of the latent grid.
        """
        cells = self.cells(features, size)
        query = self.query(token_weights.to(token_states.dtype) @ token_states)
        logits = torch.einsum("bnc,bchw->bnhw", query[..., 1:], cells)
        return logits / cells.shape[1] ** 0.5 + query[..., :1, None]

    @staticmethod
    def targets(
        masks: Float[Tensor, "batch objects height width"],
        labels: Int[Tensor, "batch objects"],
        in_prompt: Bool[Tensor, "batch objects"],
    ) -> tuple[Float[Tensor, "batch objects height width"], Bool[Tensor, "batch objects"]]:
        """Return the true masks, and which of them count: those that the prompt speaks of."""
        return masks, in_prompt

    @staticmethod
    def losses(
        logits: Float[Tensor, "batch objects height width"],
        target: Float[Tensor, "batch objects height width"],
        valid: Bool[Tensor, "batch objects"],
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """L_m and L_d of each sample."""
        probability = logits.float().sigmoid()
        return mask_loss(logits, target, valid), dice_loss(probability, target, valid)

    @staticmethod
    def predicted(logits: Tensor) -> Bool[Tensor, "batch objects height width"]:
        """Masks of probability above one half."""
        return logits > 0


class SemanticHead(nn.Module):
    """Per-pixel classes: category 0, 1, … of the data set, then background.

    Args:
        feature_channels: channels of each up block's output.
        num_categories: without background.
        hidden_channels: width of the head.
    """

    def __init__(
        self, feature_channels: Sequence[int], num_categories: int, hidden_channels: int = 64
    ):
        super().__init__()
        self.cells = _CellEmbedding(feature_channels, hidden_channels, num_categories + 1)
        self.num_categories = num_categories

    def forward(
        self,
        features: Sequence[Float[Tensor, "batch _channels _height _width"]],
        token_states: Tensor,
        token_weights: Tensor,
        size: tuple[int, int],
    ) -> Float[Tensor, "batch classes height width"]:
        """Predict class logits; the tokens are not looked at."""
        return self.cells(features, size)

    def targets(
        self,
        masks: Float[Tensor, "batch objects height width"],
        labels: Int[Tensor, "batch objects"],
        in_prompt: Bool[Tensor, "batch objects"],
    ) -> tuple[Float[Tensor, "batch classes height width"], Bool[Tensor, "batch classes"]]:
        """Return each class' share of every cell, and which classes are in the image."""
        shares = masks.new_zeros(len(masks), self.num_categories + 1, *masks.shape[2:])
        index = labels.clamp(min=0)[..., None, None].expand_as(masks)
        shares.scatter_reduce_(1, index, masks, "amax")
        shares[:, -1] = (1 - shares.sum(dim=1)).clamp(min=0)
        shares = shares / shares.sum(dim=1, keepdim=True)
        return shares, shares.amax(dim=(2, 3)) >= 0.5

    @staticmethod
    def losses(
        logits: Float[Tensor, "batch classes height width"],
        target: Float[Tensor, "batch classes height width"],
        valid: Bool[Tensor, "batch classes"],
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """L_m and L_d of each sample."""
        probability = logits.float().softmax(dim=1)
        return class_loss(logits, target), dice_loss(probability, target, valid)

    @staticmethod
    def predicted(logits: Tensor) -> Bool[Tensor, "batch classes height width"]:
        """The likeliest class of every cell."""
        best = logits.argmax(dim=1)
        return functional.one_hot(best, logits.shape[1]).movedim(-1, 1).bool()


PerceptionHead = InstanceHead | SemanticHead


def up_block_channels(unet: UNet2DConditionModel) -> list[int]:
    """Output channels of each up block, coarse to fine."""
    return list(reversed(unet.config.block_out_channels))
