"""What a training of the generator takes on GPUs of several sizes: the table of `plan --memory`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from data.errors import InvalidConfig, InvalidModel
from data.layouts.prompts import ATTRIBUTE_TOKENS
from models.generator.drawing_options import SamplingConfig
from models.generator.hub import folder_here
from models.generator.options import GeneratorConfig, NewModelConfig
from models.precision import Precision
from models.training.memory import (
    RESERVE,
    MemoryCount,
    count_sampling,
    fit,
    least_memory,
    training_counter,
)
from models.training.memory_errors import sufficient

STABLE_DIFFUSION_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
STABLE_DIFFUSION_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
STABLE_DIFFUSION_TEXT: dict[str, Any] = {
    "vocab_size": 49_408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "bos_token_id": 49_406,
    "eos_token_id": 49_407,
    "pad_token_id": 49_407,
}
"""Shapes of Stable Diffusion v1.5, in which they differ from the classes' defaults."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Configurations of a base model's modules.

    Attributes:
        source: where they are from, for people.
    """

    unet: dict[str, Any]
    text_encoder: CLIPTextConfig
    vae: dict[str, Any]
    source: str


def base_shapes(config: GeneratorConfig) -> Shapes:
    """Shapes of a base model with its layout tokens, whether it is on this machine or not.

    Raises:
        InvalidModel: it is a folder without them.
        InvalidConfig: the base model is a new, small one, which is made from the data.
    """
    name = config.base_model
    if isinstance(name, NewModelConfig):
        raise InvalidConfig("the memory of a new model is not counted: it is below 2 GB")
    folder = folder_here(name, config.base_model_revision)
    if folder:
        try:
            unet, vae = (
                dict(kind.load_config(folder, subfolder=part))
                for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
            )
            text = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder")
        except OSError as error:
            raise InvalidModel(f"train_generator.base_model {folder}: {error}") from error
        source = name
    else:
        unet, vae = dict(STABLE_DIFFUSION_UNET), dict(STABLE_DIFFUSION_VAE)
        text = CLIPTextConfig(**STABLE_DIFFUSION_TEXT)
        source = f"Stable Diffusion v1.5, as {name} is not on this machine"
    unet["sample_size"] = config.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    with_places = STABLE_DIFFUSION_TEXT["vocab_size"] + config.location_grid**2
    text.vocab_size = max(text.vocab_size, with_places) + len(ATTRIBUTE_TOKENS)
    return Shapes(unet, text, vae, source)


def memory_table(
    config: GeneratorConfig, sampling: SamplingConfig, sizes: Sequence[float]
) -> tuple[str, list[dict[str, Any]]]:
    """What is chosen on devices of some sizes, and the count by part.

    Where the training does not fit, it is counted with the options that are `sufficient`.

    Args:
        sizes: GB.

    Returns:
        What was counted, and rows; bytes in GB.
    """
    shapes = base_shapes(config)
    precision = _half(sampling.mixed_precision)
    drawn = count_sampling(shapes.unet, shapes.text_encoder, shapes.vae, precision)

    half = _half(config.mixed_precision)
    count = training_counter(shapes.unet, shapes.text_encoder, shapes.vae, config, half)

    def training(changed: GeneratorConfig, memory: int) -> dict[str, Any]:
        return _training_row(changed, count(changed), memory)

    def least(changed: GeneratorConfig) -> int:
        return least_memory(count(changed), changed)

    rows = []
    for size in sizes:
        memory = round(size * 1e9)
        room = memory - drawn.total(0, checkpointing=False)
        of_sampling = {"images drawn at once, at most": max(room // drawn.per_image[False], 0)}
        found = {"": training(config, memory)}
        if not found[""]:
            fitting = sufficient(config, memory, least)
            found = {option: training(changed, memory) for option, changed in fitting.items()}
            found = found or {"nothing fits": {}}
        rows += [
            {"device, GB": size, "option": option, **row, **of_sampling}
            for option, row in found.items()
        ]
    return f"{shapes.source}, {config.resolution} pixels", rows


def _half(precision: Precision) -> Precision:
    """What `auto` comes to on a GPU of today."""
    return "bf16" if precision == "auto" else precision


def _training_row(config: GeneratorConfig, count: MemoryCount, memory: int) -> dict[str, Any]:
    """What is chosen, empty where nothing fits."""
    found = fit(count, config, memory)
    if found is None:
        return {}
    parts = {
        **count.fixed,
        "half-precision copies": count.copies[found.checkpointing],
        "activations": found.num_images * count.per_image[found.checkpointing],
        "reserve": RESERVE,
        "total": found.total,
    }
    return {
        "images at once": found.num_images,
        "gradient checkpointing": found.checkpointing,
        **{name: size / 1e9 for name, size in parts.items()},
    }
