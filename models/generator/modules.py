"""The generator's modules and their folder: diffusers' Stable Diffusion format plus `layout.json`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, Transformer2DModel, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float, UInt8
from tokenizers import AddedToken, pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from data.errors import InvalidConfig, InvalidModel
from data.layouts.prompts import LocationGrid
from data.progress import Progress, silent
from data.vocabulary.tables import Category
from models.devices import (
    autocast,
    default_device,
    full_float32,
    resolve_precision,
    to_device,
)
from models.generator.autoencoder import PatchAutoencoder, pixel_values, to_uint8
from models.generator.conditioning import (
    LayoutEncoder,
    LocationEmbedding,
    add_layout_tokens,
    widen_input,
)
from models.generator.hub import (
    AUTOENCODERS,
    require_architecture,
    require_family,
    require_whole_weights,
)
from models.generator.options import NewModelConfig
from models.generator.samplers import new_sampler
from models.precision import Precision

_LAYOUT_FILE = "layout.json"
_AUTOENCODERS = dict(zip(AUTOENCODERS, (AutoencoderKL, PatchAutoencoder), strict=True))
_COMPILED = (ResnetBlock2D, Transformer2DModel)
_MOST_SHAPES = 64
"""Of a class of blocks that are compiled; Stable Diffusion v1.5 has 14 residual blocks of other shapes."""


@dataclass(slots=True)
class StableDiffusion:
    """The modules of a Stable Diffusion folder."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL | PatchAutoencoder
    noise_scheduler: DDPMScheduler

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell."""
        if isinstance(self.vae, PatchAutoencoder):
            return int(self.vae.config.patch_size)
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def resolution(self) -> int:
        """Side of the square images that it draws, pixels."""
        return int(self.unet.config.sample_size) * self.vae_scale_factor

    @torch.no_grad()
    def latent_moments(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch moments rows columns"]:
        """Mean and log-variance of unscaled latents, one above the other, on the CPU; pixels in [-1, 1].

        In full precision: they are made once, and every pass over the images trains on them.
        """
        device = default_device()
        distribution = self.vae.to(device).eval().encode(pixels.to(device)).latent_dist
        return torch.cat([distribution.mean, distribution.logvar], dim=1).cpu()

    @torch.no_grad()
    def decode(
        self, latents: Float[Tensor, "batch channels rows columns"], precision: Precision
    ) -> UInt8[np.ndarray, "batch height width 3"]:
        """Pictures of latents; Stable Diffusion's autoencoder in bfloat16 where that is the precision.

        Float16 has too small a range for some of them.
        """
        to_device(self.vae.eval())
        half = isinstance(self.vae, AutoencoderKL) and resolve_precision(precision) == "bf16"
        with autocast("bf16" if half else "no"), full_float32(precision):
            return to_uint8(self.vae.decode(latents / self.vae.config.scaling_factor).sample)


def load_base_model(name: str, revision: str | None = None) -> StableDiffusion:
    """Load a Stable Diffusion folder or hub id.

    Args:
        revision: of a hub id: branch, tag or commit.

    Raises:
        InvalidModel: a part is missing, cut short or of another architecture.
    """
    if Path(name).is_dir():
        require_whole_weights(Path(name))
    try:
        vae_class = _checked_autoencoder(name, revision)
        where = {"pretrained_model_name_or_path": name, "revision": revision}
        full = {"torch_dtype": torch.float32}  # master weights, whatever the folder's precision
        vae = _AUTOENCODERS[vae_class].from_pretrained(**where, subfolder="vae", **full)
        if isinstance(vae, AutoencoderKL):
            vae.enable_slicing()  # image by image: at 512 pixels each takes 0.8 GB
        return StableDiffusion(
            tokenizer=CLIPTokenizer.from_pretrained(**where, subfolder="tokenizer"),
            text_encoder=CLIPTextModel.from_pretrained(
                **where, subfolder="text_encoder", dtype=torch.float32
            ),
            unet=UNet2DConditionModel.from_pretrained(**where, subfolder="unet", **full),
            vae=vae,
            noise_scheduler=DDPMScheduler.from_pretrained(**where, subfolder="scheduler"),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidModel(
            f"{name} is not a Stable Diffusion folder or hub id "
            f"(tokenizer, text_encoder, unet, vae, scheduler): {error}"
        ) from error


def _checked_autoencoder(name: str, revision: str | None) -> str:
    """Refuse another family than Stable Diffusion's; returns the class of the autoencoder."""
    unet = UNet2DConditionModel.load_config(name, subfolder="unet", revision=revision)
    vae = PatchAutoencoder.load_config(name, subfolder="vae", revision=revision)
    scheduler = DDPMScheduler.load_config(name, subfolder="scheduler", revision=revision)
    text, _ = CLIPTextConfig.get_config_dict(name, subfolder="text_encoder", revision=revision)
    require_family(name, unet, vae, scheduler, text)
    return str(vae["_class_name"])


def compile_blocks(unet: UNet2DConditionModel) -> None:
    """Have a UNet's blocks compiled where they are first run, in place, once for every shape that they have.

    Channels are last: what wants them first, the kernel of group norm, is compiled too. Another size of the
    batch is compiled anew, prompts of another length are not; under
    `torch.compiler.set_stance("force_eager")` blocks run as they are.
    """
    torch._dynamo.config.recompile_limit = _MOST_SHAPES  # noqa: SLF001  # no public name
    unet.to(memory_format=torch.channels_last)
    for block in unet.modules():
        if isinstance(block, _COMPILED):
            block.compile(dynamic=False)
    unet.register_forward_pre_hook(_with_prompts_of_any_length)


def _with_prompts_of_any_length(_: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Tell the compiler that the tokens of text states (images, tokens, channels) vary in number."""
    torch._dynamo.maybe_mark_dynamic(inputs[2], 1)  # noqa: SLF001  # no public name


def save_base_model(model: StableDiffusion, folder: Path) -> None:
    """Write a folder that `load_base_model` and diffusers read, of equal bytes wherever it is written.

    diffusers' pipeline draws with the paper's sampler. It knows no canvas: where the UNet has one there is no
    `model_index.json`, so that it refuses the folder.
    """
    for module in (model.unet, model.vae):
        module.register_to_config(_name_or_path=None)  # diffusers notes the folder that it read
    words = model.tokenizer.backend_tokenizer  # which notes how it was called last
    words.no_padding()
    words.no_truncation()
    model.tokenizer.save_pretrained(folder / "tokenizer")
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.unet.save_pretrained(folder / "unet")
    model.vae.save_pretrained(folder / "vae")
    sampler = new_sampler("pndm", model.noise_scheduler)
    sampler.save_pretrained(folder / "scheduler")
    if model.unet.config.in_channels != model.vae.config.latent_channels:
        return
    libraries: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    libraries |= {name: [None, None] for name in ("feature_extractor", "safety_checker")}
    for name, module in (
        ("tokenizer", model.tokenizer),
        ("text_encoder", model.text_encoder),
        ("unet", model.unet),
        ("vae", model.vae),
        ("scheduler", sampler),
    ):
        package = type(module).__module__
        library = package.partition(".")[0]
        libraries[name] = [package if library == "models" else library, type(module).__name__]
    (folder / "model_index.json").write_text(json.dumps(libraries, indent=2))


def create_base_model(
    config: NewModelConfig,
    images: np.ndarray,
    class_names: Sequence[str],
    seed: int,
    progress: Progress = silent,
) -> StableDiffusion:
    """Create a small model with random weights in Stable Diffusion's shape.

    Args:
        images: uint8 (num_images, height, width, 3), to fit the autoencoder to.
        class_names: text that the tokenizer learns its vocabulary from.
    """
    tokenizer = create_tokenizer(["An image with", *class_names], config.max_prompt_length)
    size = images.shape[1] // config.patch_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder, unet = new_text_encoder(config, tokenizer), new_unet(config, size)
        pixels = pixel_values(images)
        vae = PatchAutoencoder.fit(pixels, config.patch_size, config.latent_channels)
    vae.learn_to_refine(pixels, config.decoder_steps, seed, progress)
    return StableDiffusion(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        noise_scheduler=DDPMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            prediction_type=config.prediction_type,
            steps_offset=1,
        ),
    )


def new_text_encoder(config: NewModelConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small text encoder with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_hidden_size,
            intermediate_size=2 * config.text_hidden_size,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_hidden_size // 32,
            max_position_embeddings=config.max_prompt_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(config: NewModelConfig, size: int) -> UNet2DConditionModel:
    """A small UNet with random weights.

    Attention in the middle block alone: at higher resolutions it is slow on a CPU.
    """
    depth = len(config.block_out_channels)
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) * depth,
        up_block_types=("UpBlock2D",) * depth,
        cross_attention_dim=config.text_hidden_size,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def create_tokenizer(texts: Sequence[str], max_length: int) -> CLIPTokenizer:
    """Make a CLIP tokenizer of single bytes in which every word of the texts is one token.

    Words are added tokens, not merges: training merges breaks ties differently from run to run.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{item}</w>" for item in alphabet)]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length)
    words = [word for text in texts for word in text.lower().replace("-", " ").split()]
    tokenizer.add_tokens(
        [AddedToken(word, single_word=True, normalized=True) for word in dict.fromkeys(words)]
    )
    return tokenizer


@dataclass(slots=True)
class Generator:
    """A base model that understands layouts."""

    model: StableDiffusion
    encoder: LayoutEncoder


def prepare_generator(
    model: StableDiffusion,
    categories: tuple[Category, ...],
    conditioning: str,
    grid: LocationGrid,
    overflow: str,
    *,
    resolution: int,
    perception_attributes: bool = True,
    location_embedding: LocationEmbedding = "word-norm",
) -> Generator:
    """Teach a base model the layout tokens and widen its input for the canvas, in place.

    Args:
        resolution: side of the images to train on and to generate, pixels.

    Raises:
        InvalidConfig: the resolution is not a multiple of the autoencoder's factor.
        InvalidModel: the base model is of another architecture than Stable Diffusion v1, or its
            tokenizer has location tokens of another grid.
    """
    require_architecture(model.unet.config, model.vae.config, model.text_encoder.config.to_dict())
    if resolution % model.vae_scale_factor:
        raise InvalidConfig(
            f"resolution {resolution} is not a multiple of the autoencoder's factor "
            f"{model.vae_scale_factor}"
        )
    model.unet.register_to_config(sample_size=resolution // model.vae_scale_factor)
    add_layout_tokens(model.tokenizer, model.text_encoder, grid, location_embedding)
    encoder = LayoutEncoder(
        model.tokenizer,
        categories,
        conditioning,  # type: ignore[arg-type]
        grid,
        overflow,  # type: ignore[arg-type]
        perception_attributes,
    )
    if encoder.canvas_channels:
        widen_input(model.unet, encoder.canvas_channels)
    return Generator(model, encoder)


def save_generator(generator: Generator, folder: Path) -> None:
    """Write the folder; `load_generator` reads it, and diffusers what `save_base_model` says."""
    save_base_model(generator.model, folder)
    encoder = generator.encoder
    document = {
        "layout_conditioning": encoder.conditioning,
        "grid": asdict(encoder.grid),
        "overflow": encoder.overflow,
        "perception_attributes": encoder.perception_attributes,
        "categories": [asdict(item) for item in encoder.categories],
    }
    (folder / _LAYOUT_FILE).write_text(json.dumps(document, indent=2))


def load_generator(folder: Path) -> Generator:
    """Load a folder written by `save_generator`.

    Raises:
        InvalidModel: a part is missing or damaged.
    """
    model = load_base_model(str(folder))
    try:
        document = json.loads((folder / _LAYOUT_FILE).read_text())
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{folder / _LAYOUT_FILE}: {error}") from error
    encoder = LayoutEncoder(
        tokenizer=model.tokenizer,
        categories=tuple(Category(**item) for item in document["categories"]),
        conditioning=document["layout_conditioning"],
        grid=LocationGrid(**document["grid"]),
        overflow=document["overflow"],
        perception_attributes=document["perception_attributes"],
    )
    return Generator(model, encoder)
