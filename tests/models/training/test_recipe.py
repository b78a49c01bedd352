"""The recipe `geodiffusion` against what the released scripts compute, restated without the project's code.

Shared with the project are the random draws alone: which images, mirrored or not, in which order, with
which noise.
"""

import copy
import math

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from PIL import Image

from data.layouts.prompts import LocationGrid
from data.vocabulary.images import read_square
from models.generator.modules import (
    create_base_model,
    load_base_model,
    prepare_generator,
    save_base_model,
)
from models.generator.options import GeneratorConfig, NewModelConfig
from models.generator.recipes import RECIPES
from models.training.batches import batch_indices, make_batch, step_generator
from models.training.loop import train_generator, train_step
from models.training.metrics_file import read_metrics
from models.training.state import new_state
from models.training.training_set import build_training_set

GRID = 8
CONFIG = GeneratorConfig(
    recipe="geodiffusion",
    resolution=64,
    layout_conditioning="tokens",
    location_grid=GRID,
    perception_attributes=False,
    perception_weight=0,
    num_steps=20,
    batch_size=4,
    learning_rate=2e-3,
    text_learning_rate=1.5e-3,
    base_batch_size=8,
    num_warmup_steps=6,
    mixed_precision="no",
    num_workers=0,
)


@pytest.fixture
def base(dataset):
    shape = NewModelConfig(
        block_out_channels=(16, 32),
        text_hidden_size=32,
        text_layers=3,
        decoder_steps=0,
        prediction_type="epsilon",
    )
    images = np.stack([read_square(path, 64) for _, path in dataset.image_paths("train")])
    return create_base_model(shape, images, [item.name for item in dataset.categories], seed=0)


@pytest.fixture
def folder(base, tmp_path):
    """A tiny Stable Diffusion folder: an autoencoder of Stable Diffusion's class, whose posterior is wide."""
    torch.manual_seed(0)
    base.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        latent_channels=12,
    )
    save_base_model(base, tmp_path / "stable-diffusion")
    return str(tmp_path / "stable-diffusion")


@pytest.fixture
def paths(dataset):
    return dict(dataset.image_paths("train"))


@pytest.fixture
def photographs(paths, tmp_path):
    """The same images, in files that have to be squashed."""
    found = {}
    for image_id, path in paths.items():
        found[image_id] = tmp_path / f"{image_id}.png"
        with Image.open(path) as image:
            image.resize((90, 70)).save(found[image_id])
    return found


def prepared(base, dataset, **options):
    return prepare_generator(
        base,
        dataset.categories,
        "tokens",
        LocationGrid(GRID, GRID),
        "error",
        resolution=64,
        perception_attributes=False,
        **options,
    )


def sines_and_cosines(position, width):
    angles = position / 10_000 ** (np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angles), np.cos(angles)])


class ReleasedScript:
    """A training of GeoDiffusion's, as released, on the draws of a seed."""

    def __init__(self, base, layouts, paths, names):
        self.base, self.layouts, self.paths, self.names = base, layouts, paths, names
        base.tokenizer.add_tokens([f"<l{i}>" for i in range(GRID * GRID)])
        old, width = base.text_encoder.get_input_embeddings().weight.shape
        base.text_encoder.resize_token_embeddings(len(base.tokenizer), mean_resizing=False)
        table = base.text_encoder.get_input_embeddings().weight.data
        for y in range(GRID):
            for x in range(GRID):
                parts = [sines_and_cosines(place, width // 2) for place in (x, y)]
                table[old + y * GRID + x] = torch.from_numpy(np.concatenate(parts))
        base.unet.train()
        base.text_encoder.train()
        self.optimizer = torch.optim.AdamW(
            [*self.text_groups(1.5e-3 * 4 / 8, 0.95), {"params": base.unet.parameters()}],
            lr=2e-3 * 4 / 8,
            weight_decay=1e-2,
        )
        self.noise_scheduler = DDPMScheduler.from_config(base.noise_scheduler.config)
        # The length of the cosine is counted before the data are divided among eight processes.
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.factor)

    @staticmethod
    def factor(step, warmup=6, total=8 * 20):
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def text_groups(self, rate, decay):
        num_layers = len(self.base.text_encoder.encoder.layers) + 1
        for name, parameter in self.base.text_encoder.named_parameters():
            if "token_embedding" in name or "position_embedding" in name:
                layer = 0
            elif "encoder.layers." in name:
                layer = int(name.split("layers.")[1].split(".")[0]) + 1
            else:
                layer = num_layers
            bare = parameter.ndim == 1 or "position_embedding" in name
            yield {
                "params": [parameter],
                "lr": rate * decay ** (num_layers - layer),
                "weight_decay": 0.0 if bare else 1e-2,
            }

    def example(self, index, flip, dropped, seed):
        """Pixels, prompt and weights of one image."""
        layout, cells = self.layouts[index], 64 // 4
        with Image.open(self.paths[layout.image_id]) as picture:
            square = picture.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        pixels = np.asarray(square, dtype=np.float32) / 127.5 - 1
        sides = np.array([layout.width, layout.height] * 2)
        weights, words = np.zeros((cells, cells)), ["An image with"]
        for k in np.random.default_rng(seed).permutation(len(layout.boxes)):
            left, top, right, bottom = layout.boxes[k] / sides
            if flip:
                left, right = 1 - right, 1 - left
            tokens = [
                f"<l{round(y * (GRID - 1)) * GRID + round(x * (GRID - 1))}>"
                for x, y in ((left, top), (right, bottom))
            ]
            words += [self.names[int(layout.category_ids[k])].replace("-", " "), *tokens]
            first_x, first_y, last_x, last_y = (
                round(edge * cells) for edge in (left, top, right, bottom)
            )
            area = (last_y - first_y + 1) * (last_x - first_x + 1)
            weights[first_y:last_y, first_x:last_x] = 2.0 / area**0.2
        weights[weights == 0] = 1 / (cells * cells) ** 0.2
        weights *= cells * cells / weights.sum()
        pixels = pixels[:, ::-1].copy() if flip else pixels
        return (
            torch.from_numpy(pixels).permute(2, 0, 1),
            "" if dropped else " ".join(words),
            weights,
        )

    def step(self, number):
        rng = step_generator(0, number)
        indices = batch_indices(len(self.layouts), 4, 0, number)
        flips, dropped = torch.rand(4, generator=rng) < 0.5, torch.rand(4, generator=rng) < 0.1
        timesteps = torch.randint(0, 1000, (4,), generator=rng)
        seeds = torch.randint(2**62, (4,), generator=rng).tolist()
        pixels, texts, weights = zip(
            *(self.example(*item) for item in zip(indices, flips, dropped, seeds, strict=True)),
            strict=True,
        )
        drawn = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise, of_posterior = torch.stack(
            [torch.randn(2, 12, 16, 16, generator=rng) for rng in drawn], dim=1
        )
        tokens = self.base.tokenizer(list(texts), padding=True, return_tensors="pt").input_ids
        with torch.no_grad():
            posterior = self.base.vae.encode(torch.stack(pixels)).latent_dist
            latents = posterior.mean + posterior.std * of_posterior
            latents = latents * self.base.vae.config.scaling_factor
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        states = self.base.text_encoder(tokens)[0]
        predicted = self.base.unet(noisy, timesteps, states).sample
        of_cells = torch.from_numpy(np.stack(weights)).float()[:, None]
        loss = ((predicted - noise) ** 2 * of_cells).mean()
        loss.backward()
        trained = [*self.base.unet.parameters(), *self.base.text_encoder.parameters()]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()


def test_twenty_steps_have_the_losses_of_the_released_script(
    folder, dataset, layouts, photographs, tmp_path
):
    names = {item.category_id: item.name for item in dataset.categories}
    script = ReleasedScript(load_base_model(folder), layouts, photographs, names)
    base = load_base_model(folder)
    assert base.vae.use_slicing  # of Stable Diffusion's size each image takes 0.8 GB
    generator = prepared(base, dataset, location_embedding=CONFIG.location_embedding)
    training_set = build_training_set(
        generator.model,
        layouts,
        photographs,
        tmp_path / "set",
        resize_filter=CONFIG.resize_filter,
    )
    assert training_set.moments[:, :, 12:].max() > -4  # log-variances, of which noise is drawn
    train_generator(generator, training_set, CONFIG, tmp_path, "run")
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses == pytest.approx([script.step(k) for k in range(20)], rel=1e-5)
    table = script.base.text_encoder.get_input_embeddings().weight
    ours = generator.model.text_encoder.get_input_embeddings().weight[: len(table)]
    torch.testing.assert_close(ours, table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", RECIPES["geodiffusion"])
def test_every_option_of_the_recipe_matters(base, dataset, layouts, photographs, tmp_path, option):
    """Each difference by itself changes the weights after some steps."""

    def trained(config):
        generator = prepared(
            copy.deepcopy(base), dataset, location_embedding=config.location_embedding
        )
        training_set = build_training_set(
            generator.model,
            layouts,
            photographs,
            tmp_path / config.resize_filter,
            resize_filter=config.resize_filter,
        )
        state = new_state(generator, config)
        for step in range(4):
            train_step(state, config, [make_batch(generator, training_set, config, step)])
        if state.average is not None:
            state.average.copy_to_model()
        model = generator.model
        return torch.cat(
            [
                p.detach().flatten()
                for p in [*model.text_encoder.parameters(), *model.unet.parameters()]
            ]
        )

    config = CONFIG.model_copy(update={"num_warmup_steps": 1, "num_steps": 4})
    ours = config.model_copy(update={option: GeneratorConfig.model_fields[option].default})
    assert not torch.equal(trained(config), trained(ours))
