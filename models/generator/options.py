"""Options of the generator: its shape, its training, and what is drawn with it. Light: no torch."""

from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data.artifacts.digests import DigestMemory, combined_digest
from data.artifacts.options import Options, RuntimeOnly
from data.attributes.overrides import check_objects, read_overrides
from data.errors import InvalidConfig, InvalidModel
from data.layouts.layout import AttributePolicy, require_layouts
from data.layouts.protocols import EVERYTHING, Protocol
from data.vocabulary.tables import Dataset, Split
from models.generator.hub import hub_commit, missing_downloads
from models.precision import PRECISION_HELP, Precision, require_gpu

CODE_VERSION = 2
"""Of conditioning, training and sampling; bumped by hand when what they make changes."""

MODEL_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
"""Folders of a Stable Diffusion folder."""


class NewModelConfig(Options):
    """A small base model with random weights, made by the project in Stable Diffusion's format."""

    patch_size: int = Field(4, ge=1, description="Pixels per latent cell.")
    latent_channels: int = Field(12, ge=1)
    block_out_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = Field(1, ge=1)
    text_hidden_size: int = Field(128, ge=32, multiple_of=32)
    text_layers: int = Field(2, ge=1)
    max_prompt_length: int = Field(77, ge=8, description="Tokens that a prompt may have.")
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"


class SamplingConfig(Options):
    """How images are drawn from the generator."""

    sampler: Literal["pndm", "unipc", "dpm-solver++"] = "pndm"
    num_inference_steps: int = Field(50, ge=1)
    guidance_scale: float = Field(4.5, ge=0)
    mixed_precision: Precision = Field("auto", description=PRECISION_HELP)
    batch_size: Annotated[int, RuntimeOnly] = Field(
        16, ge=1, description="Layouts per batch; another one changes images by rounding alone."
    )
    seed: int = 0


class ProbeConfig(Options):
    """Samples of a fixed set of layouts during training, which show early whether boxes have effect."""

    interval: int = Field(1000, ge=0, description="Steps between probes; 0 is off.")
    num_layouts: int = Field(32, ge=1, description="Validation layouts, evenly spread.")
    sampling: SamplingConfig = SamplingConfig(sampler="unipc", num_inference_steps=20)


class GeneratorConfig(Options):
    """How the layout-conditioned diffusion model is made and trained."""

    base_model: str | NewModelConfig = Field(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="Stable Diffusion folder or hub id, or the shape of a new model.",
    )
    base_model_revision: Annotated[str, RuntimeOnly] = Field(
        "main",
        description="Of a hub id: branch, tag or commit; the commit that it stands for is keyed.",
    )
    resolution: int = Field(512, ge=8, description="Side of the square training images, pixels.")
    layout_conditioning: Literal["tokens", "canvas", "both"] = Field(
        "tokens", description="Where the layout goes: prompt (paper), UNet input, or both."
    )
    location_grid: int = Field(256, ge=2, description="Location tokens per side.")
    binning: Literal["round", "floor"] = "round"
    overflow: Literal["error", "largest-first"] = Field(
        "largest-first", description="What to do with layouts whose prompt is too long."
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
    prompt_dropout: float = Field(0.1, ge=0, le=1, description="Share of empty prompts.")
    flip_probability: float = Field(0.5, ge=0, le=1)
    min_area_fraction: float = Field(0.0, ge=0, lt=1, description="Smaller boxes are left out.")
    max_things: int | None = Field(None, ge=1, description="Images with more things are left out.")
    num_steps: int = Field(110_000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(64, ge=1, description="Images per optimiser step.")
    learning_rate: float = Field(4e-5, gt=0, description="Of the UNet and the perception head.")
    text_learning_rate: float = Field(3e-5, ge=0, description="Of the text encoder; 0 freezes it.")
    num_warmup_steps: int = Field(
        3000, ge=0, description="Of the learning rate, growing from 0; at most half of the steps."
    )
    weight_decay: float = Field(1e-2, ge=0)
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
    mixed_precision: Precision = Field("auto", description=PRECISION_HELP)
    seed: int = 0
    probe: Annotated[ProbeConfig, RuntimeOnly] = ProbeConfig()
    latents: Annotated[Literal["cached", "online"], RuntimeOnly] = Field(
        "cached", description="Encode every image once into a file, or whenever it is used."
    )
    gradient_accumulation_steps: Annotated[int, RuntimeOnly] = Field(
        1, ge=1, description="Parts that each process cuts its share of a batch into."
    )
    gradient_checkpointing: Annotated[bool, RuntimeOnly] = Field(
        False, description="Compute activations twice to need less memory."
    )
    num_workers: Annotated[int, RuntimeOnly] = Field(
        1,
        ge=0,
        description="Processes that assemble batches ahead; 0, also if encoding online: none.",
    )
    num_processes: Annotated[int, RuntimeOnly] = Field(
        1, ge=1, description="Data-parallel processes that share a batch, one for each GPU."
    )
    checkpoint_interval: Annotated[int, RuntimeOnly] = Field(1000, ge=1, description="Steps.")
    keep_checkpoints: Annotated[int, RuntimeOnly] = Field(2, ge=1, description="Newest ones kept.")

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        parts = self.num_processes * self.gradient_accumulation_steps
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

    @property
    def num_gpus(self) -> int:
        """One for each process."""
        return self.num_processes

    @property
    def protocol(self) -> Protocol:
        """Which layouts are trained on."""
        return Protocol(self.min_area_fraction, min_objects=1, max_objects=self.max_things)

    @property
    def probe_protocol(self) -> Protocol:
        """Which layouts are probed."""
        return Protocol(min_objects=1, max_objects=self.max_things)

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of a base model's folder, or the commit of one from the hub.

        Raises:
            InvalidModel: there is no such model.
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
        parts = [folder / name for name in MODEL_PARTS]
        missing = [part.name for part in parts if not part.is_dir()]
        if missing:
            raise InvalidModel(
                f"train_generator.base_model {folder} is no Stable Diffusion folder: it has no "
                + ", ".join(missing)
            )
        return {"base_model": combined_digest(map(digests.folder, parts))}

    def downloads(self) -> tuple[str, ...]:
        """A base model of the hub that is not on this machine yet."""
        name = self.base_model
        if isinstance(name, NewModelConfig) or Path(name).is_dir():
            return ()
        return missing_downloads(name, self.base_model_revision)

    def check(self, dataset: Dataset) -> None:
        """Refuse a rule that leaves no layout to train on, or none to probe, and fp16 without a GPU.

        Raises:
            InvalidDataset: it does.
            InvalidConfig: there is no GPU.
        """
        if self.mixed_precision == "fp16":
            require_gpu("train_generator.mixed_precision", "fp16")
        limits = "train_generator.max_things or min_area_fraction"
        require_layouts(dataset, "train", self.protocol, limits)
        if self.probe.interval:
            require_layouts(
                dataset, "val", self.probe_protocol, f"{limits}, or set probe.interval=0"
            )


class SyntheticSetOptions(Options):
    """One synthetic data set: which layouts, at which difficulty, and how they are drawn."""

    split: Split
    policy: AttributePolicy = Field(
        "origin", description="Attributes: as measured, all easy or all hard."
    )
    class_policies: dict[str, AttributePolicy] = Field(
        default_factory=dict, description="Policies of single classes, over `policy`."
    )
    attribute_overrides: Path | None = Field(
        None, description="Parquet with object_id and attribute of single boxes."
    )
    protocol: Protocol = EVERYTHING
    num_layouts: int | None = Field(None, ge=1, description="Evenly spread; null is all.")
    images_per_layout: int = Field(1, ge=1)
    sampling: SamplingConfig = SamplingConfig()

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the overrides.

        Raises:
            InvalidDataset: there is no such table.
        """
        if self.attribute_overrides is None:
            return {}
        read_overrides(self.attribute_overrides)
        return {"attribute_overrides": digests.file(self.attribute_overrides)}

    def check(self, dataset: Dataset) -> None:
        """Refuse classes and objects that do not exist, and a rule that leaves no layout.

        Raises:
            InvalidConfig: a class is none of the data set's things.
            InvalidDataset: no layout is left, or an overridden object is no thing of the split.
        """
        check_classes(self.class_policies, set(dataset.things.values()))
        if self.attribute_overrides:
            things = dataset.object_columns(self.split, ["object_id", "is_thing"])
            known = things.filter(things["is_thing"])["object_id"].to_pylist()
            check_objects(read_overrides(self.attribute_overrides), known, self.split)
        limits = f"synthesize.min_things, max_things, min_area_fraction or {self.split}_protocol"
        require_layouts(dataset, self.split, self.protocol, limits)


def check_classes(policies: Iterable[str], things: Collection[str]) -> None:
    """Refuse policies of classes that do not exist.

    Raises:
        InvalidConfig: a class is none of the data set's things.
    """
    unknown = sorted(set(policies) - set(things))
    if unknown:
        raise InvalidConfig(
            f"synthesize.class_policies names {unknown}, which are no things of the data set: "
            f"{sorted(things)}"
        )
