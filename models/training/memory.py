"""How much device memory the generator's training takes, counted on tensors without data.

The modules and one pass forward and backward are run on PyTorch's fake tensors, which have shapes alone;
what is alive at once is counted. Nothing is allocated, so that any model can be counted on any machine.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel

from models.counting import LiveBytes
from models.devices import resolve_precision
from models.generator.modules import Generator
from models.generator.options import GeneratorConfig
from models.precision import Precision
from models.training.memory_errors import too_small
from models.training.perception import InstanceHead, up_block_channels
from models.training.state import TrainedModules, add_adapters, release_text_encoder

logger = logging.getLogger(__name__)

RESERVE = 1_500_000_000
"""Bytes for what is not counted: CUDA's context and workspaces, fragmentation [D]."""

_FEWEST_PLAIN = 4
"""Images at once below which recomputed activations are taken rather than smaller parts [D]."""

_MOST_COUNTED = 64
"""Images at once. The count is linear from one on; what it is of is convex, so that it is never too low."""

_MOMENT_BYTES = {"adamw": 8, "adamw-8bit": 2}
_SMALLEST_8BIT = 4096
"""Elements from which on bitsandbytes' moments have 8 bits."""


@dataclass(frozen=True, slots=True)
class MemoryCount:
    """Bytes on one device.

    Attributes:
        fixed: by what they are for, whatever the batch.
        copies: of weights in half precision, kept for a pass, without and with gradient checkpointing.
        per_image: activations of an image, likewise.
    """

    fixed: Mapping[str, int]
    copies: Mapping[bool, int]
    per_image: Mapping[bool, int]

    def total(self, num_images: int, *, checkpointing: bool) -> int:
        """Bytes with so many images worked on at once, the reserve included."""
        in_pass = self.copies[checkpointing] + num_images * self.per_image[checkpointing]
        return sum(self.fixed.values()) + in_pass + RESERVE


@dataclass(frozen=True, slots=True)
class Fit:
    """How a batch is worked on.

    Attributes:
        num_images: at once.
        checkpointing: whether activations are computed twice.
        total: bytes.
    """

    num_images: int
    checkpointing: bool
    total: int

    def options(self, config: GeneratorConfig) -> dict[str, Any]:
        """Options of a training that works so."""
        share = config.batch_size // config.num_processes
        return {
            "gradient_accumulation_steps": share // self.num_images,
            "gradient_checkpointing": self.checkpointing,
        }


def fit(count: MemoryCount, config: GeneratorConfig, memory: int) -> Fit | None:
    """Choose the largest part of a process' share of the batch that a device holds.

    Activations are kept if that leaves at least four images at once, else computed twice. Options that
    are given are kept. None where not even the smallest part fits.

    Args:
        memory: of the device, bytes.
    """
    sizes, ways = _ways(config)
    for checkpointing in ways:
        few = 1 if checkpointing == ways[-1] else min(_FEWEST_PLAIN, sizes[0])
        for size in sizes:
            total = count.total(size, checkpointing=checkpointing)
            if total <= memory and size >= few:
                return Fit(size, checkpointing, total)
    return None


def least_memory(count: MemoryCount, config: GeneratorConfig) -> int:
    """Bytes of the smallest device that holds a training."""
    sizes, ways = _ways(config)
    return count.total(sizes[-1], checkpointing=ways[-1])


def _ways(config: GeneratorConfig) -> tuple[list[int], tuple[bool, ...]]:
    """Images at once, and gradient checkpointing, that options leave open; what needs least is last."""
    share = config.batch_size // config.num_processes
    sizes = [n for n in range(share, 0, -1) if share % n == 0]
    if config.gradient_accumulation_steps != "auto":
        sizes = [share // config.num_parts]
    given = config.gradient_checkpointing
    return sizes, (False, True) if given == "auto" else (given,)


def fitted(generator: Generator, config: GeneratorConfig) -> tuple[GeneratorConfig, Fit | None]:
    """Settle for the GPUs of this machine what is `auto`; on a CPU nothing is cut or computed twice.

    Raises:
        OutOfMemory: not even the smallest part fits.
    """
    left_open = "auto" in {config.gradient_accumulation_steps, config.gradient_checkpointing}
    if not torch.cuda.is_available() or not left_open:
        return config, None
    num_devices = min(config.num_gpus, torch.cuda.device_count())
    devices = map(torch.cuda.get_device_properties, range(num_devices))
    logger.info("counting what the training takes")
    count = training_counter(
        generator.model.unet.config,
        generator.model.text_encoder.config,
        generator.model.vae.config,
        config,
        resolve_precision(config.mixed_precision),
    )
    memory = min(item.total_memory for item in devices)
    found = fit(count(config), config, memory)
    if found is None:
        raise too_small(config, memory, lambda changed: least_memory(count(changed), changed))
    return config.model_copy(update=found.options(config)), found


def training_counter(
    unet: Mapping[str, Any],
    text_encoder: CLIPTextConfig,
    vae: Mapping[str, Any],
    config: GeneratorConfig,
    precision: Precision,
) -> Callable[[GeneratorConfig], MemoryCount]:
    """Return what counts trainings that differ from one in `THRIFTY` alone; passes are counted once a rank.

    Args:
        unet: as for `count_training`, and so on.
    """

    @cache
    def passes(lora_rank: int | None) -> tuple[dict[bool, int], dict[bool, int]]:
        changed = config.model_copy(update={"lora_rank": lora_rank})
        return pass_bytes(unet, text_encoder, changed, precision)

    @cache
    def count(changed: GeneratorConfig) -> MemoryCount:
        fixed = fixed_bytes(unet, text_encoder, vae, changed)
        return MemoryCount(fixed, *passes(changed.lora_rank))

    return count


def count_training(
    unet: Mapping[str, Any],
    text_encoder: CLIPTextConfig,
    vae: Mapping[str, Any],
    config: GeneratorConfig,
    precision: Precision,
) -> MemoryCount:
    """Count what a training takes.

    Args:
        unet: configuration of the UNet, of the resolution and the input channels that it is trained with.
        text_encoder: likewise, with all tokens.
        vae: of the autoencoder, which is on the device where images are encoded online.
        precision: of matrix products, not `auto`.
    """
    return training_counter(unet, text_encoder, vae, config, precision)(config)


def fixed_bytes(
    unet: Mapping[str, Any],
    text_encoder: CLIPTextConfig,
    vae: Mapping[str, Any],
    config: GeneratorConfig,
) -> dict[str, int]:
    """Bytes that a training takes whatever the batch, by what they are for."""
    fixed = _fixed(empty_modules(unet, text_encoder, config), config)
    if config.latents == "online" and vae.get("_class_name", "AutoencoderKL") == "AutoencoderKL":
        fixed["autoencoder"] = _encoder_bytes(vae, config.resolution)
    return fixed


def pass_bytes(
    unet: Mapping[str, Any],
    text_encoder: CLIPTextConfig,
    config: GeneratorConfig,
    precision: Precision,
) -> tuple[dict[bool, int], dict[bool, int]]:
    """Bytes of a pass, whatever the optimiser: copies, and activations of an image, as in `MemoryCount`."""
    copies: dict[bool, int] = {}
    per_image: dict[bool, int] = {}
    modules = empty_modules(unet, text_encoder, config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        modules.to_empty(device="cpu")
        for checkpointing in (False, True):
            if checkpointing:
                modules.enable_checkpointing()
            copies[checkpointing], per_image[checkpointing] = _linear(
                partial(_activations, modules, precision)
            )
    return copies, per_image


def _encoder_bytes(vae: Mapping[str, Any], resolution: int) -> int:
    """Weights of the autoencoder, and what encoding an image takes."""
    with FakeTensorMode(), torch.no_grad():
        autoencoder = AutoencoderKL.from_config(vae)
        with LiveBytes() as live:
            autoencoder.encode(torch.empty(1, 3, resolution, resolution))
        return _num_bytes(autoencoder.parameters()) + live.peak


def count_sampling(
    unet: Mapping[str, Any],
    text_encoder: CLIPTextConfig,
    vae: Mapping[str, Any],
    precision: Precision,
) -> MemoryCount:
    """Count what drawing images takes; each is computed with and without its layout.

    Args:
        unet: as for `count_training`.
        vae: configuration of the autoencoder, which decodes one image at a time.
    """
    with FakeTensorMode(), torch.no_grad():
        model, text = UNet2DConditionModel.from_config(unet), CLIPTextModel(text_encoder)
        autoencoder = AutoencoderKL.from_config(vae)
        copies, per_image = _linear(partial(_drawing, model, text_encoder, precision))
        channels, size = autoencoder.config.latent_channels, model.config.sample_size
        with _autocast(precision), LiveBytes() as of_decoder:
            autoencoder.decode(torch.empty(1, channels, size, size))
        parameters = [*model.parameters(), *text.parameters(), *autoencoder.parameters()]
    # The UNet has done when the decoder begins.
    copies = max(copies, of_decoder.peak - per_image)
    return MemoryCount({"weights": _num_bytes(parameters)}, {False: copies}, {False: per_image})


def _linear(count: Callable[[int], int]) -> tuple[int, int]:
    """Bytes whatever the batch, and for each image."""
    one, most = count(1), count(_MOST_COUNTED)
    per_image = math.ceil((most - one) / (_MOST_COUNTED - 1))
    return max(one - per_image, 0), per_image


def _drawing(
    unet: UNet2DConditionModel, text_encoder: CLIPTextConfig, precision: Precision, num_images: int
) -> int:
    """Most bytes alive in a step of the sampler beside weights."""
    size, num_passes = unet.config.sample_size, 2 * num_images
    latents = torch.empty(num_passes, unet.config.in_channels, size, size)
    timesteps = torch.zeros(num_passes, dtype=torch.long)
    states = torch.empty(num_passes, text_encoder.max_position_embeddings, text_encoder.hidden_size)
    with _autocast(precision), LiveBytes() as live:
        unet(latents, timesteps, states)
    return live.peak


def _autocast(precision: Precision) -> torch.autocast:
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast("cpu", half, enabled=precision != "no")


def empty_modules(
    unet: Mapping[str, Any], text_encoder: CLIPTextConfig, config: GeneratorConfig
) -> TrainedModules:
    """The modules that are trained, without data."""
    with torch.device("meta"):
        model, text = UNet2DConditionModel.from_config(unet), CLIPTextModel(text_encoder)
        release_text_encoder(text, config)
        head = None
        if config.perception_weight > 0:
            head = InstanceHead(up_block_channels(model), text_encoder.hidden_size)
        if config.lora_rank is not None:
            add_adapters(model, config.lora_rank)
    return TrainedModules(text, model, head).train()


def _fixed(modules: TrainedModules, config: GeneratorConfig) -> dict[str, int]:
    trained = [p for p in modules.parameters() if p.requires_grad]
    table = modules.sparse_table
    dense = [p for p in trained if p is not table]
    of_head = () if modules.head is None else tuple(modules.head.parameters())
    exported = _num_bytes(trained) - _num_bytes(of_head)
    moments = sum(_moment_bytes(p, config, sparse=p is table) for p in trained)
    return {
        "weights": _num_bytes(modules.parameters()),
        "gradients": _num_bytes(dense),
        "moments": moments,
        "average": 0 if config.ema_decay is None else exported,
    }


def _num_bytes(parameters: Any) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


def _moment_bytes(parameter: nn.Parameter, config: GeneratorConfig, *, sparse: bool) -> int:
    small = parameter.numel() < _SMALLEST_8BIT
    return parameter.numel() * _MOMENT_BYTES["adamw" if sparse or small else config.optimizer]


def _activations(modules: TrainedModules, precision: Precision, num_images: int) -> int:
    """Most bytes alive in a pass forward and backward beside weights and gradients."""
    inputs = empty_inputs(modules, num_images)
    with LiveBytes() as live, live.without_gradients(modules):
        training_pass(modules, precision, inputs)
    modules.zero_grad()
    return live.peak


def empty_inputs(modules: TrainedModules, num_images: int) -> tuple[Tensor, ...]:
    """Arguments of the modules for so many images, of which the shapes alone are right."""
    size = modules.unet.config.sample_size
    latents = torch.empty(num_images, modules.unet.config.in_channels, size, size)
    timesteps = torch.zeros(num_images, dtype=torch.long)
    tokens = modules.text_encoder.config.max_position_embeddings
    ids = torch.zeros(num_images, tokens, dtype=torch.long)
    return latents, timesteps, ids, torch.zeros(num_images, tokens // 4, tokens)


def training_pass(
    modules: TrainedModules, precision: Precision, inputs: tuple[Tensor, ...]
) -> None:
    """Pass forward and backward; the losses are stood for by means of squares."""
    with _autocast(precision):
        outputs = modules(*inputs)
    sum(out.float().square().mean() for out in outputs if out is not None).backward()
