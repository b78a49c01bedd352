"""Options of the stages that need models. Light: imports neither torch nor any model library."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data.attributes import AttributeConfig
from data.layouts import AttributePolicy
from data.store import RuntimeOnly


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
        True, description="Load the weights that the config names; off trains from scratch."
    )
    image_size: tuple[int, int] = Field(
        (1333, 800), description="Long and short side that images are resized to, in pixels."
    )
    num_iterations: int = Field(88_716, ge=1, description="Optimiser steps.")
    batch_size: int = Field(8, ge=1, description="Images per optimiser step.")
    learning_rate: float = Field(0.01, gt=0)
    num_warmup_iterations: int = Field(500, ge=0)
    checkpoint_interval: Annotated[int, RuntimeOnly] = Field(
        1000, ge=1, description="Steps between resumable checkpoints."
    )
    seed: int = 0
    num_workers: Annotated[int, RuntimeOnly] = Field(2, ge=0, description="Data loader processes.")


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
    foreground_weight: float = Field(2.0, gt=0, description="w of the foreground re-weighting.")
    foreground_power: float = Field(0.2, ge=0, description="p of the foreground re-weighting.")
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
    num_warmup_steps: int = Field(3000, ge=0)
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.9999, ge=0, lt=1)
    seed: int = 0
    checkpoint_interval: Annotated[int, RuntimeOnly] = Field(1000, ge=1, description="Steps.")


class SamplingConfig(_Options):
    """How images are drawn from the generator."""

    sampler: Literal["pndm", "unipc", "dpm-solver++"] = "pndm"
    num_inference_steps: int = Field(50, ge=1)
    guidance_scale: float = Field(4.5, ge=0)
    batch_size: int = Field(16, ge=1, description="Layouts per batch; part of the key.")
    seed: int = 0


class SyntheticSetConfig(_Options):
    """One synthetic data set."""

    split: Literal["train", "val"] = Field(description="Split whose layouts are drawn.")
    policy: AttributePolicy = Field(description="Attributes: as measured, all easy or all hard.")
    num_layouts: int | None = Field(None, ge=1, description="Layouts, evenly spread; null is all.")
    images_per_layout: int = Field(1, ge=1)


class SynthesisConfig(_Options):
    """Which synthetic data sets are made from which layouts."""

    sampling: SamplingConfig = SamplingConfig()
    min_things: int = Field(3, ge=0, description="Layouts with fewer things are left out.")
    max_things: int | None = Field(8, ge=1, description="Layouts with more things are left out.")
    sets: dict[str, SyntheticSetConfig] = Field(
        default_factory=lambda: {
            "train": SyntheticSetConfig(split="train", policy="hard"),
            "origin": SyntheticSetConfig(split="val", policy="origin", images_per_layout=5),
            "easy": SyntheticSetConfig(split="val", policy="easy"),
            "hard": SyntheticSetConfig(split="val", policy="hard"),
        },
        description="`train` is added to the real images; the others are measured.",
    )


class ScoringConfig(_Options):
    """Inference over real images for the perception-aware attributes."""

    score_threshold: float = Field(0.05, ge=0, lt=1, description="Weaker detections are not kept.")
    batch_size: Annotated[int, RuntimeOnly] = Field(32, ge=1)


class AttributeStageConfig(_Options):
    """Inference over the real images, and the easy/hard labels from it."""

    scoring: ScoringConfig = ScoringConfig()
    labelling: AttributeConfig = AttributeConfig()


class RetrainConfig(_Options):
    """Which detectors are trained on real and on real + synthetic images."""

    detector: DetectorConfig = DetectorConfig()
    seeds: tuple[int, ...] = (0,)


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
