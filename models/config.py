"""Options of the stages that need models. Light: imports neither torch nor any model library."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from data.attributes import AttributeConfig
from data.filters import ProtocolName
from data.layouts import AttributePolicy
from data.store import RuntimeOnly

Precision = Literal["auto", "no", "bf16", "fp16"]
_PRECISION = "Of matrix products; auto: bf16 where the hardware multiplies it, else full."


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DetectorConfig(_Options):
    """Which MMDetection detector to train, and how."""

    config: str = Field(
        "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        description="A config packaged with MMDetection (`mmdet::…`) or the path of a config file.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="MMEngine options by dotted name, such as model.neck.out_channels.",
    )
    pretrained: bool = Field(
        True,
        description="Start from the backbone weights that the config names; off: from scratch.",
    )
    image_size: tuple[int, int] = Field(
        (1333, 800), description="Long and short side that images are resized to, in pixels."
    )
    num_iterations: int = Field(88_716, ge=1, description="Optimiser steps.")
    batch_size: int = Field(8, ge=1, description="Images per optimiser step.")
    learning_rate: float = Field(0.01, gt=0)
    num_warmup_iterations: int = Field(
        500, ge=0, description="Of the learning rate; at most all of the iterations."
    )
    checkpoint_interval: Annotated[int, RuntimeOnly] = Field(
        1000, ge=1, description="Steps between resumable checkpoints."
    )
    seed: int = 0
    num_workers: int = Field(
        2, ge=0, description="Data loader processes; each draws its own random flips."
    )


DETECTOR_FILES = ("config.py", "detector.json", "model.safetensors")
"""What a trained detector's folder holds."""


class NewModelConfig(_Options):
    """A small base model with random weights, made by the project in Stable Diffusion's format."""

    patch_size: int = Field(4, ge=1, description="Pixels per latent cell.")
    latent_channels: int = Field(12, ge=1)
    block_out_channels: tuple[int, ...] = (64, 96, 128)
    layers_per_block: int = Field(1, ge=1)
    text_hidden_size: int = Field(128, ge=32, multiple_of=32)
    text_layers: int = Field(2, ge=1)
    max_prompt_length: int = Field(77, ge=8, description="Tokens that a prompt may have.")
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"


class SamplingConfig(_Options):
    """How images are drawn from the generator."""

    sampler: Literal["pndm", "unipc", "dpm-solver++"] = "pndm"
    num_inference_steps: int = Field(50, ge=1)
    guidance_scale: float = Field(4.5, ge=0)
    mixed_precision: Precision = Field("auto", description=_PRECISION)
    batch_size: int = Field(16, ge=1, description="Layouts per batch; part of the key.")
    seed: int = 0


class ProbeConfig(_Options):
    """Samples of a fixed set of layouts during training, which show early whether boxes have effect."""

    interval: int = Field(1000, ge=0, description="Steps between probes; 0 is off.")
    num_layouts: int = Field(32, ge=1, description="Validation layouts, evenly spread.")
    sampling: SamplingConfig = SamplingConfig(sampler="unipc", num_inference_steps=20)


class GeneratorConfig(_Options):
    """How the layout-conditioned diffusion model is made and trained."""

    base_model: str | NewModelConfig = Field(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        description="Stable Diffusion folder or hub id, or the shape of a new model.",
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
        "smallest", description="Which box a cell in several belongs to; released code: last."
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
    max_objects: int | None = Field(None, ge=1, description="Images with more things are left out.")
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
    mixed_precision: Precision = Field("auto", description=_PRECISION)
    seed: int = 0
    probe: ProbeConfig = ProbeConfig()
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


class SynthesisConfig(_Options):
    """Which synthetic images are made.

    Set `train` is added to the real training images; `origin`, `easy` and `hard` are drawn from the
    same validation layouts and measured.
    """

    sampling: SamplingConfig = SamplingConfig()
    min_things: int = Field(3, ge=0, description="Layouts with fewer things are left out.")
    max_things: int | None = Field(8, ge=1, description="Layouts with more things are left out.")
    min_area_fraction: float = Field(0.0, ge=0, lt=1, description="Smaller boxes are left out.")
    train_protocol: ProtocolName | None = Field(
        None, description="A named rule for the training layouts, in place of the three above."
    )
    val_protocol: ProtocolName | None = Field(
        None, description="A named rule for the validation layouts, likewise."
    )
    train_policy: AttributePolicy = Field(
        "hard", description="Attributes of the training set: as measured, all easy or all hard."
    )
    attribute_overrides: Path | None = Field(
        None,
        description="Parquet with object_id and attribute (easy or hard) of single training boxes, in "
        "place of the measured ones; for train_policy origin.",
    )
    class_policies: dict[str, AttributePolicy] = Field(
        default_factory=dict, description="Policies of single classes, over `train_policy`."
    )
    num_train_layouts: int | None = Field(None, ge=1, description="Evenly spread; null is all.")
    num_val_layouts: int | None = Field(None, ge=1, description="Evenly spread; null is all.")
    images_per_train_layout: int = Field(1, ge=1)
    images_per_val_layout: int = Field(5, ge=1, description="Five in the paper's protocol.")


class CheckpointConfig(_Options):
    """Somebody's MMDetection detector."""

    config: str = Field(description="Config packaged with MMDetection (`mmdet::…`), or its path.")
    checkpoint: Path = Field(description="Its .pth, or safetensors with the same names.")
    classes: tuple[str, ...] | None = Field(
        None,
        description="Names in label order; null: as the checkpoint says, else the data set's things.",
    )


class ResultsConfig(_Options):
    """COCO results files, JSON lists of {image_id, category_id, bbox, score}."""

    train: Path
    val: Path


class ScoringConfig(_Options):
    """Where the detections for the perception-aware attributes come from."""

    score_threshold: float = Field(0.05, ge=0, lt=1, description="Weaker detections are not kept.")
    detector: Path | CheckpointConfig | None = Field(
        None,
        description="A detector's folder as train-detector writes it, or an MMDetection config with a "
        "checkpoint; null: the one that train-detector trained.",
    )
    results: ResultsConfig | None = Field(
        None, description="Detections of any other framework, instead of inference."
    )
    num_folds: int = Field(
        0,
        ge=0,
        description="From 2: so many detectors of train-detector's options, each trained without the "
        "fold of training images that it scores. 0: training images are scored by the detector.",
    )
    batch_size: Annotated[int, RuntimeOnly] = Field(32, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.num_folds == 1:
            raise ValueError(
                "one fold leaves nothing to train on: give scoring.num_folds from 2 on"
            )
        given = [self.detector is not None, self.results is not None, self.num_folds > 1]
        if sum(given) > 1:
            raise ValueError("give one of scoring.detector, scoring.results and scoring.num_folds")
        return self


class AttributeStageConfig(_Options):
    """Inference over the real images, and the easy/hard labels from it."""

    scoring: ScoringConfig = ScoringConfig()
    labelling: AttributeConfig = AttributeConfig()

    @model_validator(mode="after")
    def _kept_detections_suffice(self) -> Self:
        if self.labelling.score_threshold < self.scoring.score_threshold:
            raise ValueError(
                f"labelling.score_threshold {self.labelling.score_threshold} is below "
                f"scoring.score_threshold {self.scoring.score_threshold}: lower the latter too"
            )
        return self


class RetrainConfig(_Options):
    """Which detectors are trained on real and on real + synthetic images."""

    detector: DetectorConfig = DetectorConfig()
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="One detector per arm and seed.")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("each seed may stand once")
        return seeds


class EvaluationConfig(_Options):
    """How generated images and retrained detectors are measured."""

    features: Literal["detector", "inception"] = Field(
        "inception", description="Extractor of the Fréchet distance; only inception gives the FID."
    )
    inception_weights: Path | None = Field(
        None, description="InceptionV3 weights file, where nothing may be downloaded."
    )
    recall_iou_threshold: float = Field(0.5, gt=0, lt=1)
    recall_score_threshold: float = Field(0.3, ge=0, lt=1)
    batch_size: Annotated[int, RuntimeOnly] = Field(32, ge=1)
