"""Options of a run by stage, and how a run is put together from a preset and overrides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from data.attributes.options import AttributeConfig
from data.errors import InvalidConfig
from data.ingest.options import IngestConfig
from data.layouts.layout import AttributePolicy
from data.layouts.protocols import PROTOCOLS, Protocol, ProtocolName
from data.vocabulary.tables import Split
from flows.presets import PRESETS, PresetName, merge
from models.detector.options import DetectorConfig, ScoringConfig
from models.generator.options import GeneratorConfig, SamplingConfig
from models.metrics.options import MeasureOptions

Arm = Literal["real", "real+origin", "real+easy", "real+hard"]
"""What a detector is trained on; the policy of the synthetic images stands after the plus."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AttributeStageConfig(_Section):
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


class SynthesisConfig(_Section):
    """Which synthetic images are made.

    The training sets are those that the arms of `retrain` need; `origin`, `easy` and `hard` are drawn
    from the same validation layouts and measured.
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
    attribute_overrides: Path | None = Field(
        None,
        description="Parquet with object_id and attribute (easy or hard) of single training boxes, in "
        "place of the measured ones; for the arm real+origin.",
    )
    class_policies: dict[str, AttributePolicy] = Field(
        default_factory=dict,
        description="Policies of single classes in the training sets, over the set's own.",
    )
    num_train_layouts: int | None = Field(None, ge=1, description="Evenly spread; null is all.")
    num_val_layouts: int | None = Field(None, ge=1, description="Evenly spread; null is all.")
    images_per_train_layout: int = Field(1, ge=1)
    images_per_val_layout: int = Field(5, ge=1, description="Five in the paper's protocol.")

    def protocol(self, split: Split) -> Protocol:
        """Which layouts of a split are drawn."""
        name = self.train_protocol if split == "train" else self.val_protocol
        if name:
            return PROTOCOLS[name]
        return Protocol(self.min_area_fraction, self.min_things, self.max_things)


class RetrainConfig(_Section):
    """Which detectors are trained on real and on real + synthetic images."""

    detector: DetectorConfig = DetectorConfig()
    arms: tuple[Arm, ...] = Field(
        ("real", "real+hard"), min_length=1, description="What the detectors are trained on."
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="One detector per arm and seed.")

    @field_validator("arms", "seeds")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each may stand once")
        return values


class EvaluationConfig(MeasureOptions):
    """How generated images and retrained detectors are measured."""

    features: Literal["detector", "inception"] = Field(
        "inception", description="Extractor of the Fréchet distance; only inception gives the FID."
    )
    inception_weights: Path | None = Field(
        None, description="InceptionV3 weights file, where nothing may be downloaded."
    )
    batch_size: int = Field(32, ge=1, description="Images that a detector looks at at once.")


class RunConfig(BaseModel):
    """All options of a run: those of the preset, and over them those given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: PresetName = Field(
        "demo",
        description="Fills in what is not given. A form gives everything: choose it elsewhere.",
    )
    ingest: IngestConfig
    train_detector: DetectorConfig
    train_scorer: DetectorConfig
    extract_attributes: AttributeStageConfig
    train_generator: GeneratorConfig
    synthesize: SynthesisConfig
    retrain: RetrainConfig
    evaluate: EvaluationConfig

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset", "demo")
        return merge(PRESETS[preset], given) if preset in PRESETS else given


def build_run(preset: str, overrides: Mapping[str, Any]) -> RunConfig:
    """Return a preset's run with options laid over it.

    Raises:
        InvalidConfig: the preset, an option or a value does not exist; the message names it.
    """
    if preset not in PRESETS:
        raise InvalidConfig(
            f"unknown preset {preset!r}: choose one of {', '.join(get_args(PresetName))}"
        )
    try:
        return RunConfig.model_validate({**overrides, "preset": preset})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']} (got {item['input']!r})"
            for item in error.errors()
        )
        raise InvalidConfig(
            f"preset {preset} with these options is not valid: {problems}"
        ) from error
