"""Training steps at the demo's size against a plain loop in the style of diffusers' examples.

The plain loop has the same modules and losses: full precision, NCHW, images read and encoded when they
are used, AdamW and the moving average tensor by tensor. Both see the same batches, block by block in
turn. Beside it stands the U-Net's speed as a share of what the machine reaches in convolutions alone.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from demo_generator import Demo, demo
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from models.devices import autocast, resolve_precision
from models.generator.options import GeneratorConfig
from models.speed import flops_per_second
from models.training.batches import Batch, make_batch
from models.training.loop import batches_ahead, train_step
from models.training.losses import (
    denoising_loss,
    foreground_weights,
    perception_loss,
)
from models.training.perception import captured_features
from models.training.state import TrainedModules, new_state
from models.training.training_set import build_training_set

GOAL = 1.8
PEAK_GOAL = 0.6
BLOCK = 8
"""Steps made in turn."""

Step = Callable[[int], float]
"""Make a training step, return its loss."""


def our_steps(scene: Demo, precision: str) -> Step:
    """The project's own training."""
    config = scene.config.model_copy(update={"mixed_precision": precision})
    generator = scene.new_generator()
    images = build_training_set(
        generator.model, scene.layouts, scene.image_paths, scene.folder / "set"
    )
    state = new_state(generator, config)

    ahead = iter(batches_ahead(state, images, config))

    def step(index: int) -> float:
        return train_step(state, config, next(ahead)).read()["loss"]

    return step


def plain_steps(scene: Demo) -> Step:
    """The plain loop."""
    config, generator = scene.config, scene.new_generator()
    images = build_training_set(
        generator.model, scene.layouts, scene.image_paths, scene.folder / "set", "online"
    )
    modules = new_state(generator, config.model_copy(update={"mixed_precision": "no"})).modules
    modules.unet.to(memory_format=torch.contiguous_format)
    modules.text_encoder.get_input_embeddings().sparse = False
    parameters = list(modules.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [*modules.unet.parameters(), *modules.head.parameters()]},
            {"params": modules.text_encoder.parameters(), "lr": config.text_learning_rate},
        ],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1.0, done / config.num_warmup_steps)
    )
    averages = [
        EMAModel(part.parameters(), decay=config.ema_decay)
        for part in (modules.unet, modules.text_encoder)
    ]

    def step(index: int) -> float:
        loss = _plain_loss(modules, scene, config, make_batch(generator, images, config, index))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        schedule.step()
        for average, part in zip(averages, (modules.unet, modules.text_encoder), strict=True):
            average.step(part.parameters())
        return float(loss.detach())

    scheduler = generator.model.noise_scheduler

    def _plain_loss(
        modules: TrainedModules, scene: Demo, config: GeneratorConfig, batch: Batch
    ) -> Tensor:
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        states = modules.text_encoder(batch.input_ids).last_hidden_state
        with captured_features(modules.unet) as features:
            canvas = generator.encoder.canvas(batch.layouts, *noisy.shape[2:])
            canvas = canvas * ~batch.dropped[:, None, None, None]
            inputs = torch.cat([noisy, canvas], dim=1)
            prediction = modules.unet(inputs, batch.timesteps, states).sample
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        size = batch.latents.shape[-1]
        cells = foreground_weights(
            batch.layouts.boxes * size,
            batch.layouts.is_thing,
            size,
            size,
            config.foreground_weight,
            config.foreground_power,
        )
        alphas = scheduler.alphas_cumprod[batch.timesteps]
        weights = torch.ones_like(alphas)
        head = modules.head
        logits = head(features, states, batch.token_weights, (size, size))
        in_prompt = batch.token_weights.sum(dim=2) > 0
        true, valid = head.targets(batch.masks.float() / 255, batch.layouts.labels, in_prompt)
        perception = perception_loss(*head.losses(logits, true, valid), alphas)
        return denoising_loss(prediction, target, cells, weights) + (
            config.perception_weight * perception
        )

    return step


def interleaved(
    steps: dict[str, Step], num_blocks: int
) -> tuple[dict[str, float], dict[str, list]]:
    """Seconds a step, median over blocks made in turn, and all losses; the first block warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(num_blocks + 1):
        for name, step in steps.items():
            started = time.perf_counter()
            losses[name] += [step(block * BLOCK + offset) for offset in range(BLOCK)]
            if block:
                seconds[name].append((time.perf_counter() - started) / BLOCK)
    return {name: statistics.median(values) for name, values in seconds.items()}, losses


def speed_of(model: nn.Module, inputs: tuple[Tensor, ...], precision: str) -> float:
    """Speed of passes forward and backward, FLOP/s."""

    def run() -> None:
        with autocast(precision):
            output = model(*inputs)
        getattr(output, "sample", output).float().square().mean().backward()
        model.zero_grad()

    return flops_per_second(run)


def peak_share(scene: Demo, precision: str) -> tuple[float, float]:
    """The U-Net's speed, and that of its own widths in bare 3×3 convolutions, FLOP/s."""
    generator, size = scene.new_generator(), scene.config.batch_size
    unet = generator.model.unet.to(memory_format=torch.channels_last)
    side, width = unet.config.sample_size, max(unet.config.block_out_channels)
    latents = torch.randn(size, unet.config.in_channels, side, side)
    states = torch.randn(
        size, generator.encoder.tokenizer.model_max_length, unet.config.cross_attention_dim
    )
    inputs = latents.to(memory_format=torch.channels_last), torch.zeros(size).long(), states
    stack = nn.Sequential(*(nn.Conv2d(width, width, 3, padding=1) for _ in range(6)))
    stack.to(memory_format=torch.channels_last)
    bare = torch.randn(size, width, side, side).to(memory_format=torch.channels_last)
    return speed_of(unet, inputs, precision), speed_of(stack, (bare,), precision)


def main() -> int:
    """Print the speeds; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8, help=f"timed blocks of {BLOCK} steps")
    num_blocks = parser.parse_args().blocks
    with demo(ema_decay=0.995) as scene:
        steps = {"plain": plain_steps(scene), "ours, fp32": our_steps(scene, "no")}
        precision = resolve_precision("auto")
        if precision != "no":
            steps[f"ours, {precision}"] = our_steps(scene, precision)
        seconds, losses = interleaved(steps, num_blocks)
        for kind in ("no", precision) if precision != "no" else ("no",):
            speed, peak = peak_share(scene, kind)
            print(
                f"U-Net, precision {kind}: {speed / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s of bare "
                f"convolutions, {speed / peak:.0%} (goal {PEAK_GOAL:.0%})"
            )
    means = {name: statistics.mean(values) for name, values in losses.items()}
    for name, value in seconds.items():
        print(f"{name}: {value * 1e3:.0f} ms a step, mean loss {means[name]:.4f}")
    ours = list(seconds)[-1]
    ratio = seconds["plain"] / seconds[ours]
    equal = all(abs(value / means["plain"] - 1) < 0.03 for value in means.values())
    print(
        f"training step: {ours} {ratio:.2f}× as fast as the plain loop "
        f"(fp32 {seconds['plain'] / seconds['ours, fp32']:.2f}×); goal {GOAL}×; loss curves "
        f"{'equal' if equal else 'DIFFERENT'} to 3%"
    )
    return 0 if ratio >= GOAL and equal else 1


if __name__ == "__main__":
    sys.exit(main())
