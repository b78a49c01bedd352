"""What the passes of a generator take: `models.counts` says what of it is known without counting."""

import json
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig

from data.layouts.prompts import ATTRIBUTE_TOKENS
from data.scenes.classes import STUFF, THINGS
from models.counting import counted_pass
from models.generator.autoencoder import PatchAutoencoder
from models.generator.conditioning import num_canvas_channels
from models.generator.modules import create_tokenizer, new_text_encoder, new_unet
from models.generator.options import GeneratorConfig, NewModelConfig
from models.passes import ModelCount, Pass
from models.training.memory import (
    count_training,
    empty_inputs,
    empty_modules,
    training_pass,
)
from models.training.memory_table import Shapes, base_shapes
from models.training.state import TrainedModules


def count_model(options: str) -> ModelCount:
    """Count a generator: a pass of its training, a prediction, a text, an image encoded and decoded.

    Args:
        options: as `generator_model` writes them.
    """
    config = GeneratorConfig.model_validate(json.loads(options))
    shapes = _shapes(config)
    if config.layout_conditioning != "tokens":
        shapes.unet["in_channels"] += num_canvas_channels(len(THINGS) + len(STUFF))
    modules = empty_modules(shapes.unet, shapes.text_encoder, config)
    trained = [item for item in modules.parameters() if item.requires_grad]
    frozen = [item for item in modules.parameters() if not item.requires_grad]
    with FakeTensorMode(allow_non_fake_inputs=True):
        modules.to_empty(device="cpu")
        autoencoder = _autoencoder(config, shapes)
        exported = (modules.unet, modules.text_encoder, autoencoder)
        passes = {"train": counted_pass(lambda count: _train(modules, count))}
        with torch.no_grad():
            passes |= _drawing(modules, autoencoder, config.resolution)
    needed = count_training(shapes.unet, shapes.text_encoder, shapes.vae, config, "bf16")
    return ModelCount(
        parameters=sum(item.numel() for part in exported for item in part.parameters()),
        trained=sum(item.numel() for item in trained),
        tensors=len(trained),
        frozen=sum(item.numel() for item in frozen),
        passes=passes,
        least_gpu_memory=needed.total(1, checkpointing=True),
    )


def _train(modules: TrainedModules, num_images: int) -> None:
    training_pass(modules, "no", empty_inputs(modules, num_images))
    modules.zero_grad()


def _drawing(modules: TrainedModules, autoencoder: Any, resolution: int) -> dict[str, Pass]:
    unet: Any = modules.unet
    text: Any = modules.text_encoder
    size = unet.config.sample_size
    tokens, width = text.config.max_position_embeddings, text.config.hidden_size
    channels = autoencoder.config.latent_channels

    def predict(count: int) -> None:
        latents, timesteps, _, _ = empty_inputs(modules, count)
        unet(latents, timesteps, torch.empty(count, tokens, width))

    return {
        "forward": counted_pass(predict),
        "text": counted_pass(lambda count: text(torch.zeros(count, tokens, dtype=torch.long))),
        "encode": counted_pass(
            lambda count: autoencoder.encode(torch.empty(count, 3, resolution, resolution))
        ),
        "decode": counted_pass(
            lambda count: autoencoder.decode(torch.empty(count, channels, size, size))
        ),
    }


def _shapes(config: GeneratorConfig) -> Shapes:
    """Those of a new model, or of Stable Diffusion v1.5."""
    new = config.base_model
    if not isinstance(new, NewModelConfig):
        return base_shapes(config)
    tokenizer = create_tokenizer(["An image with", *THINGS, *STUFF], new.max_prompt_length)
    with torch.device("meta"):
        unet = new_unet(new, config.resolution // new.patch_size)
        text: CLIPTextConfig = new_text_encoder(new, tokenizer).config
    text.vocab_size += config.location_grid**2 + len(ATTRIBUTE_TOKENS)
    return Shapes(dict(unet.config), text, {"_class_name": "PatchAutoencoder"}, "a new model")


def _autoencoder(config: GeneratorConfig, shapes: Shapes) -> AutoencoderKL | PatchAutoencoder:
    new = config.base_model
    if isinstance(new, NewModelConfig):
        return PatchAutoencoder(new.patch_size, new.latent_channels)
    return AutoencoderKL.from_config(shapes.vae)
