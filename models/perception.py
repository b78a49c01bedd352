"""The perception head: instance masks from the UNet's decoder features, used in training only."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


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


class PerceptionHead(nn.Module):
    """One mask per prompt box, queried by the box's own token states.

    Up-block outputs → 1×1 convolution → resize to the latent grid → sum → two convolutions → an
    embedding per cell; a box's mask logits are its query's inner products with the cells.

    Args:
        feature_channels: channels of each up block's output.
        text_channels: width of the text encoder's states.
        hidden_channels: width of the head.
    """

    def __init__(
        self, feature_channels: Sequence[int], text_channels: int, hidden_channels: int = 64
    ):
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Conv2d(channels, hidden_channels, 1) for channels in feature_channels
        )
        self.embedding = nn.Sequential(
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
        )
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
        summed = torch.stack(
            [
                functional.interpolate(project(feature), size, mode="bilinear")
                for project, feature in zip(self.projections, features, strict=True)
            ]
        ).sum(dim=0)
        cells = self.embedding(summed)
        query = self.query(token_weights @ token_states)
        logits = torch.einsum("bnc,bchw->bnhw", query[..., 1:], cells)
        return logits / cells.shape[1] ** 0.5 + query[..., :1, None]


def up_block_channels(unet: UNet2DConditionModel) -> list[int]:
    """Output channels of each up block, coarse to fine."""
    return list(reversed(unet.config.block_out_channels))
