"""How far adapters learn at several rates, beside a whole U-Net at the rate of `fine-tune`.

A small U-Net of random weights learns eight pairs of noise by heart, with AdamW and no schedule: what is
left of the loss after so many steps says whether a rate moves anything.
"""

import argparse
import copy
from itertools import chain

import torch
from diffusers import UNet2DConditionModel

from models.training.state import add_adapters

FULL_RATE = 4.6875e-6
"""1.5e-4 for a batch of 256, scaled to 8."""

RATES = (FULL_RATE, 3e-5, 1e-4, 3e-4)
RANK, NUM_PAIRS = 16, 8


def new_unet() -> UNet2DConditionModel:
    """Random weights, with Stable Diffusion v1.5's width of prompts."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(128, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=768,
        attention_head_dim=8,
    )


def losses(unet: UNet2DConditionModel, rate: float, num_steps: int) -> tuple[float, float]:
    """Before the first step and before the last."""
    rng = torch.Generator().manual_seed(3)
    inputs, noise = torch.randn(2, NUM_PAIRS, 4, 8, 8, generator=rng)
    prompts = torch.randn(NUM_PAIRS, 20, 768, generator=rng)
    timesteps = torch.randint(0, 1000, (NUM_PAIRS,), generator=rng)
    target = inputs + 0.3 * noise
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
    found = []
    for _ in range(num_steps):
        loss = (unet(inputs, timesteps, prompts).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        found.append(loss.item())
    return found[0], found[-1]


def main() -> None:
    """Print a line a rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=120)
    num_steps = parser.parse_args().steps
    unet = new_unet()
    for what, rate in chain([("whole", FULL_RATE)], (("adapters", rate) for rate in RATES)):
        learner = copy.deepcopy(unet)
        torch.manual_seed(1)
        if what == "adapters":
            add_adapters(learner, RANK)
        first, last = losses(learner, rate, num_steps)
        print(f"{what} at {rate:.2g}: loss {first:.3f}, after {num_steps} steps {last:.3f}")


if __name__ == "__main__":
    main()
