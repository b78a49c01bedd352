"""Options of the generator: its shape and its training. Light: no torch."""

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from data.artifacts.digests import DigestMemory, combined_digest
from data.artifacts.options import AddedLater, Options, RuntimeOnly
from data.errors import InvalidConfig
from data.layouts.options import Protocol, RuleOrRuns, protocol_of
from data.option_errors import OneOf
from models.generator.drawing_options import COMPILE_HELP, SamplingConfig
from models.generator.hub import (
    MODEL_PARTS,
    hub_commit,
    missing_downloads,
    require_stable_diffusion,
)
from models.generator.recipes import RECIPES, RELEASED_RATES, RecipeName
from models.precision import PRECISION_HELP, Precision, require_gpu
from models.process_options import DistributedOptions

if TYPE_CHECKING:
    from data.vocabulary.tables import Dataset

logger = logging.getLogger(__name__)

CODE_VERSION = 5
"""Of conditioning, training and sampling; bumped by hand when what they make changes."""

_TOO_FAR = 2.0
"""Factor from the released rate for each image from which on a user is told."""

DECODER_BATCH_SIZE = 32
"""Images in a step of a small model's decoder."""


class NewModelConfig(Options):
    """A small base model with random weights, made by the project in Stable Diffusion's format."""

    patch_size: int = Field(4, ge=1, description="Pixels per latent cell.")
    latent_channels: int = Field(12, ge=1)
    decoder_steps: int = Field(
        1000,
        ge=0,
        description=f"Steps of {DECODER_BATCH_SIZE} images in which the decoder learns to take noise out "
        "of latents.",
    )
    block_out_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = Field(1, ge=1)
    text_hidden_size: int = Field(128, ge=32, multiple_of=32)
    text_layers: int = Field(2, ge=1)
    max_prompt_length: int = Field(77, ge=8, description="Tokens that a prompt may have.")
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"


class ProbeConfig(Options):
    """Samples of a fixed set of layouts during training, which show early whether boxes have effect."""

    interval: int = Field(1000, ge=0, description="Steps between probes; 0 is off.")
    num_layouts: int = Field(32, ge=1, description="Validation layouts, evenly spread.")
    sampling: SamplingConfig = SamplingConfig(sampler="unipc", num_inference_steps=20)


class GeneratorConfig(DistributedOptions):
    """How the layout-conditioned diffusion model is made and trained."""

    recipe: Annotated[RecipeName, RuntimeOnly] = Field(
        "ours",
        description="Fills in what is not given of the options in which the code that GeoDiffusion released "
        "differs from ours (docs/method.md).",
    )
    base_model: Annotated[str | NewModelConfig, OneOf] = Field(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="Stable Diffusion folder or hub id, or the shape of a new model.",
    )
    base_model_revision: Annotated[str, RuntimeOnly] = Field(
        "main",
        description="Of a hub id: branch, tag or commit; the commit that it stands for is keyed.",
    )
    resolution: int = Field(512, ge=8, description="Side of the square training images, pixels.")
    resize_filter: Annotated[Literal["bicubic", "bilinear"], AddedLater] = Field(
        "bicubic", description="By which images become squares; bilinear: released code."
    )
    layout_conditioning: Literal["tokens", "canvas", "both"] = Field(
        "tokens", description="Where the layout goes: prompt (paper), UNet input, or both."
    )
    location_grid: int = Field(256, ge=2, description="Location tokens per side.")
    location_embedding: Literal["word-norm", "raw"] = Field(
        "word-norm",
        description="Location tokens start as sines and cosines, as long as words or as they are "
        "(released code): at width 768 of norm 0.39 or 19.6.",
    )
    binning: Literal["round", "floor"] = "round"
    overflow: Literal["error", "largest-first"] = Field(
        "largest-first", description="What to do with layouts whose prompt is too long."
    )
    prompt_padding: Literal["max-length", "longest"] = Field(
        "max-length",
        description="Length that prompts of a training batch are padded to; images are always drawn with "
        "the tokenizer's. Longest of the batch: released code.",
    )
    perception_attributes: bool = Field(True, description="Put <easy>/<hard> into the prompt.")
    perception_weight: float = Field(0.01, ge=0, description="λ of the perception loss; 0 is off.")
    perception_head: Literal["instance", "semantic"] = Field(
        "instance", description="One mask per prompt box, or per-pixel classes."
    )
    foreground_weight: float = Field(2.0, gt=0, description="w of the foreground re-weighting.")
    foreground_power: float = Field(0.2, ge=0, description="p of the foreground re-weighting.")
    foreground_overlap: Literal["smallest", "last"] = Field(
        "smallest",
        description="Which box a cell in several belongs to; last: the released code's map, whose "
        "boxes are rounded to whole cells.",
    )
    foreground_things_only: bool = Field(
        True, description="Stuff is background; the released code counts it as foreground."
    )
    min_snr_gamma: float | None = Field(
        None, gt=0, description="γ of min-SNR weighting; null is off."
    )
    timestep_sampling: Annotated[Literal["uniform", "logit-normal"], AddedLater] = Field(
        "uniform",
        description="Density of the noise levels that are trained on; logit-normal: more of the middle "
        "ones, where it is decided what stands where (Esser et al., ICML 2024).",
    )
    timestep_logit_mean: Annotated[float, AddedLater] = Field(
        0.0,
        description="Of the logit-normal density over the time steps, of spread 1; above 0: more noise.",
    )
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="Share of empty prompts.")
    flip_probability: float = Field(0.5, ge=0, le=1)
    layouts: RuleOrRuns = Field(
        "run", description="Rule for the layouts that are trained on and probed; run: the run's."
    )
    num_epochs: Annotated[float, AddedLater] = Field(
        0, ge=0, description="Passes over the images that are trained on; 0: num_steps says."
    )
    num_steps: int = Field(110_000, ge=0, description="Optimiser steps; 0: num_epochs says.")
    batch_size: int = Field(64, ge=1, description="Images per optimiser step.")
    learning_rate: float = Field(
        4e-5, gt=0, description="Of the UNet and the perception head, at base_batch_size."
    )
    text_learning_rate: float = Field(
        3e-5, ge=0, description="Of the text encoder, likewise; 0 freezes it."
    )
    base_batch_size: int = Field(64, ge=1, description="Batch that the rates are stated for.")
    rate_scaling: Literal["linear", "none"] = Field(
        "linear",
        description="Rates at another batch size: in proportion to it (Goyal et al., 2017), or as stated.",
    )
    text_layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of the rate from each layer of the text encoder to the one below it.",
    )
    embedding_rows: Literal["touched", "all"] = Field(
        "touched",
        description="Rows of the token embedding that Adam goes through in a step; all: released code.",
    )
    num_warmup_steps: int = Field(
        3000, ge=0, description="Of the learning rate, growing from 0; at most half of the steps."
    )
    schedule_stretch: float = Field(
        1.0,
        ge=1,
        description="Length of the cosine in multiples of num_steps; released code made it for one of its "
        "8 processes (8), so that its rate ends at 97% of the peak.",
    )
    weight_decay: float = Field(1e-2, ge=0)
    text_vector_decay: bool = Field(
        True,
        description="Weight decay of the text encoder's biases, norms and position embeddings too; "
        "released code has none there.",
    )
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float | None = Field(
        0.9999, ge=0, lt=1, description="Of the averaged weights; null exports the last weights."
    )
    optimizer: Literal["adamw", "adamw-8bit"] = Field(
        "adamw", description="8-bit moments need the package bitsandbytes."
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        description="Train low-rank adapters of the UNet's attention instead of all of it.",
    )
    lora_learning_rate: float = Field(
        1e-4,
        gt=0,
        description="Of the adapters, as it stands at any batch size (diffusers' example of text-to-image "
        "with LoRA).",
    )
    mixed_precision: Precision = Field("auto", description=PRECISION_HELP)
    seed: int = 0
    probe: Annotated[ProbeConfig, RuntimeOnly] = ProbeConfig()
    latents: Annotated[Literal["cached", "online"], RuntimeOnly] = Field(
        "cached", description="Encode every image once into a file, or whenever it is used."
    )
    gradient_accumulation_steps: Annotated[Literal["auto"] | PositiveInt, RuntimeOnly, OneOf] = (
        Field(
            "auto",
            description="Parts that each process cuts its share of a batch into; auto: as few as the GPU's "
            "memory allows, one on a CPU.",
        )
    )
    gradient_checkpointing: Annotated[Literal["auto"] | bool, RuntimeOnly, OneOf] = Field(
        "auto",
        description="Compute activations twice to need less memory; auto: where the GPU has too little "
        "for four images at once without.",
    )
    torch_compile: Annotated[bool, RuntimeOnly] = Field(False, description=COMPILE_HELP)
    num_workers: Annotated[int, RuntimeOnly] = Field(
        1,
        ge=0,
        description="Processes that read images and assemble batches ahead; 0: none. While images are "
        "encoded online a thread does it.",
    )
    num_processes: Annotated[int, RuntimeOnly] = Field(
        1, ge=1, description="Data-parallel processes that share a batch, one for each GPU."
    )
    checkpoint_interval: Annotated[int, RuntimeOnly] = Field(1000, ge=1, description="Steps.")
    keep_checkpoints: Annotated[int, RuntimeOnly] = Field(2, ge=1, description="Newest ones kept.")

    @model_validator(mode="before")
    @classmethod
    def _over_recipe(cls, given: Any) -> Any:
        recipe = given.get("recipe") if isinstance(given, Mapping) else None
        return {**RECIPES[recipe], **given} if recipe in RECIPES else given

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if bool(self.num_epochs) == bool(self.num_steps):
            raise ValueError(
                f"num_epochs is {self.num_epochs:g} and num_steps {self.num_steps}: "
                "one of them must be 0 and the other say how long to train (a file of `detdiffusion new` is "
                "for fine-tune: another preset takes its [ingest] alone)"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        parts = self.num_processes * self.num_parts
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of num_processes × "
                f"gradient_accumulation_steps = {parts}"
            )
        return self

    @model_validator(mode="after")
    def _resolution_divides(self) -> Self:
        shape = self.base_model
        if isinstance(shape, NewModelConfig) and self.resolution % shape.patch_size:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of base_model.patch_size "
                f"{shape.patch_size}"
            )
        return self

    def in_steps(self, num_images: int) -> Self:
        """The same with its length in steps, where there are so many images.

        >>> GeneratorConfig(num_epochs=3, num_steps=0, batch_size=8).in_steps(20).num_steps
        8
        """
        steps = math.ceil(self.num_epochs * num_images / self.batch_size)
        length = {"num_epochs": 0, "num_steps": self.num_steps or steps}
        return self.model_copy(update=length)

    @property
    def num_parts(self) -> int:
        """Parts that each process cuts its share of a batch into; one while that is left open."""
        given = self.gradient_accumulation_steps
        return 1 if given == "auto" else given

    @property
    def rates(self) -> tuple[float, float]:
        """Peak learning rates of the UNet and of the text encoder at this batch size.

        >>> GeneratorConfig(batch_size=16).rates
        (1e-05, 7.5e-06)
        """
        scale = self.batch_size / self.base_batch_size if self.rate_scaling == "linear" else 1.0
        return self.learning_rate * scale, self.text_learning_rate * scale

    def keyed(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The key knows the adapters' rate where there are adapters.

        >>> "lora_learning_rate" in GeneratorConfig().keyed()
        False
        >>> GeneratorConfig(lora_rank=16).keyed()["lora_learning_rate"]
        0.0001
        """
        idle = () if self.lora_rank else ("lora_learning_rate",)
        return super().keyed((*without, *idle))

    @property
    def protocol(self) -> Protocol:
        """Which layouts are trained on and probed."""
        return protocol_of(self.layouts, Protocol())

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of a base model's folder, or the commit of one from the hub.

        Raises:
            InvalidModel: there is no such model, a download left half of it, or it is of another family.
            InvalidConfig: the optimiser's package is not installed.
        """
        if self.optimizer == "adamw-8bit" and find_spec("bitsandbytes") is None:
            raise InvalidConfig("optimizer adamw-8bit needs: pip install bitsandbytes")
        if isinstance(self.base_model, NewModelConfig):
            return {}
        folder = Path(self.base_model)
        if not folder.is_dir():
            commit = hub_commit(self.base_model, self.base_model_revision)
            return {"base_model": f"{self.base_model}@{commit}"}
        require_stable_diffusion(folder)
        parts = (digests.folder(folder / name) for name in MODEL_PARTS)
        return {"base_model": combined_digest(parts)}

    def downloads(self) -> tuple[str, ...]:
        """A base model of the hub that is not on this machine yet."""
        name = self.base_model
        if isinstance(name, NewModelConfig) or Path(name).is_dir():
            return ()
        return missing_downloads(name, self.base_model_revision)

    def check_without_data(self) -> None:
        """Refuse fp16 or NCCL without a GPU, and tell of rates that seem to be meant for another batch.

        Raises:
            InvalidConfig: there is no GPU.
        """
        super().check_without_data()
        if self.mixed_precision == "fp16":
            require_gpu("train_generator.mixed_precision", "fp16")
        for warning in self._rates_of_another_batch():
            logger.warning("%s", warning)

    def check(self, dataset: "Dataset") -> None:
        """Refuse a rule that leaves no layout to train on, or none to probe.

        Raises:
            InvalidDataset: it does.
        """
        from data.layouts.layout import require_layouts  # noqa: PLC0415  # loads what the command line need not

        rule = "layouts or train_generator.layouts"
        require_layouts(dataset, "train", self.protocol, rule)
        if self.probe.interval:
            require_layouts(dataset, "val", self.protocol, f"{rule}, or set probe.interval=0")

    def _rates_of_another_batch(self) -> Iterator[str]:
        """What is to be said of rates of a base model that seem to be meant for another batch.

        The UNet has none where adapters are trained in its place, nor has a frozen text encoder.
        """
        if isinstance(self.base_model, NewModelConfig):
            return
        batch = RELEASED_RATES["base_batch_size"]
        rates = {"learning_rate": self.rates[0], "text_learning_rate": self.rates[1]}
        if self.lora_rank:
            del rates["learning_rate"]
        for name, rate in rates.items():
            released = RELEASED_RATES[name]
            factor = (rate / self.batch_size) / (released / batch)
            if rate and not 1 / _TOO_FAR < factor < _TOO_FAR:
                yield (
                    f"train_generator.{name} is {rate:g} for a batch of {self.batch_size}, {factor:.2g} "
                    f"times the rate for each image that was released ({released:g} at {batch:g}): "
                    "base_batch_size is the batch that a rate is meant for"
                )
