"""Options of a run by stage, and how a run is put together from a preset and overrides."""

import math
import re
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
from data.layouts.layout import POLICIES, AttributePolicy
from data.layouts.protocols import Protocol, Rule, RuleOrRuns, protocol_of
from data.vocabulary.tables import Split
from flows.presets import PRESETS, PresetName, merge
from models.detector.config_sources import dotted
from models.detector.options import (
    Budget,
    CheckpointConfig,
    DarknetConfig,
    DetectorConfig,
    ScoringConfig,
)
from models.generator.options import (
    IMAGE_SIZE_HELP,
    RECIPES,
    GeneratorConfig,
    ImageSize,
    SamplingConfig,
)
from models.metrics.options import DETECTOR, MAIN, SCORER

_NAME = re.compile("[a-z0-9]+(_[a-z0-9]+)*")

Arm = Literal[
    "real",
    "real-repeated",
    "real+copy-paste",
    "real+origin",
    "real+easy",
    "real+hard",
    "synthetic-only",
    "more-real",
]
"""What a detector is trained on.

`real+origin`, `real+easy` and `real+hard` have synthetic images of that policy; the others that need some, by
content or by number, have those of `RetrainConfig.policy`.
"""


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
    train_layouts: RuleOrRuns = Field(
        "run", description="Rule for the training layouts that are drawn; run: the run's."
    )
    val_layouts: RuleOrRuns = Field(
        "run", description="Rule for the validation layouts that are drawn and measured, likewise."
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
    image_size: ImageSize = Field("generator", description=IMAGE_SIZE_HELP)


class RetrainConfig(_Section):
    """Which detectors are trained on what, and compared how.

    Optimiser, schedule and iterations are the same in all arms of a detector.
    """

    detector: DetectorConfig = DetectorConfig()
    others: dict[str, DetectorConfig | None] = Field(
        default_factory=dict,
        description="More detectors to train in every arm, by a name of yours; null: not this one.",
    )
    arms: tuple[Arm, ...] = Field(
        ("real", "real+hard"), min_length=1, description="What the detectors are trained on."
    )
    budgets: tuple[Budget, ...] = Field(
        ("iterations",),
        min_length=1,
        description="Arms with synthetic images have as many iterations as `real`, or so many more that "
        "they see each real image as often; then `real-repeated` is the one with as many iterations.",
    )
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="One detector per arm and seed.")
    ruler: tuple[float, ...] = Field(
        (),
        description="Also train on so many real images, in multiples of the training images (above 1: "
        "with spare ones): what a gain is worth in real images is read off these.",
    )
    contrasts: tuple[tuple[str, str], ...] = Field(
        (),
        description='What is asked, before the run: pairs such as ["real+hard", "real+copy-paste"]; '
        "none: every arm against real, and where its budget is exposure also against real-repeated.",
    )

    @field_validator("arms", "budgets", "seeds", "ruler")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            raise ValueError("each may stand once")
        return values

    @field_validator("ruler")
    @classmethod
    def _multiples(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < value < math.inf and value != 1 for value in values):
            raise ValueError("multiples are finite and above 0, and 1 is the arm real")
        return values

    @field_validator("others")
    @classmethod
    def _names(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _named(values, MAIN)

    @model_validator(mode="after")
    def _contrasts_are_of_arms(self) -> Self:
        known = [*self.trained_arms, *map(ruler_arm, self.ruler)]
        unknown = {name for pair in self.contrasts for name in pair} - set(known)
        if unknown:
            raise ValueError(
                f"contrasts name {sorted(unknown)}: with these options there are {', '.join(known)}"
            )
        if len({*self.contrasts}) < len(self.contrasts) or any(a == b for a, b in self.contrasts):
            raise ValueError("each contrast may stand once, and is of two arms")
        return self

    @property
    def detectors(self) -> dict[str, DetectorConfig]:
        """By name."""
        return {MAIN: self.detector} | {k: v for k, v in self.others.items() if v is not None}

    @property
    def policy(self) -> AttributePolicy:
        """Of the synthetic images where the arm does not say: hard, or the first that an arm has."""
        found = [policy_of(arm) for arm in self.arms]
        return "hard" if "hard" in found else next(filter(None, found), "hard")

    @property
    def trained_arms(self) -> dict[str, tuple[Arm, Budget]]:
        """What is trained, by the name that people read; budgets concern arms with synthetic images."""
        trained: dict[str, tuple[Arm, Budget]] = {}
        for arm in self.arms:
            if arm == "real-repeated":
                trained[arm] = arm, "exposure"
                continue
            for budget in self.budgets if policy_of(arm) else ("iterations",):
                name = arm if budget == "iterations" else f"{arm}, equal exposure"
                trained[name] = arm, budget
        return trained

    @property
    def asked(self) -> tuple[tuple[str, str], ...]:
        """The contrasts, those given or the usual ones."""
        if self.contrasts:
            return self.contrasts
        arms = self.trained_arms
        pairs = [(name, "real") for name in arms if name != "real" and "real" in arms]
        if "real-repeated" in arms:
            longer = [name for name, (_, budget) in arms.items() if budget == "exposure"]
            pairs += [(name, "real-repeated") for name in longer if name != "real-repeated"]
        return tuple(pairs)


def ruler_arm(multiple: float) -> str:
    """Name of the detectors trained on a multiple of the training images."""
    return f"real x {multiple:g}"


def _named(values: dict[str, Any], *reserved: str) -> dict[str, Any]:
    """Refuse names that would not be told apart in tables, keys and numbers."""
    for name in values:
        if name in reserved or not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} cannot be a name: use small letters, digits and single _, and not {reserved}"
            )
    return values


def policy_of(arm: Arm) -> AttributePolicy | None:
    """The policy of an arm `real+POLICY`."""
    policy = arm.removeprefix("real+")
    return next((item for item in POLICIES if item == policy), None)


class ScorerResults(BaseModel):
    """COCO results files of any framework, of the real validation images and of the synthetic sets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    real: Path
    origin: Path
    easy: Path
    hard: Path


GivenScorer = Path | CheckpointConfig | DarknetConfig | ScorerResults
"""A judge of generated images that is the user's."""


class EvaluationConfig(_Section):
    """How generated images are measured."""

    recall_iou_threshold: float = Field(0.5, gt=0, lt=1)
    recall_score_threshold: float = Field(0.3, ge=0, lt=1)

    features: Literal["inception", "random"] = Field(
        "inception",
        description="Extractor: InceptionV3, with which the Fréchet distance is the FID, or a fixed random "
        "network, which is the same on every machine and needs no weights.",
    )
    inception_weights: Path | None = Field(
        None, description="InceptionV3 weights file, where nothing may be downloaded."
    )
    scorer: GivenScorer | None = Field(
        None,
        description="The independent judge of generated images: a detector's folder, an MMDetection config "
        "with a checkpoint, Darknet's cfg and weights, or COCO results; null: train-scorer's.",
    )
    scorers: dict[str, GivenScorer | None] = Field(
        default_factory=dict,
        description="More judges, by a name of yours, given likewise; null: not this.",
    )
    batch_size: int = Field(32, ge=1, description="Images that a detector looks at at once.")

    @field_validator("scorers")
    @classmethod
    def _names(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _named(values, SCORER, DETECTOR)


class RunConfig(BaseModel):
    """All options of a run: those of the preset, and over them those given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: PresetName = Field(
        "demo",
        description="Fills in what is not given. A form gives everything: choose it elsewhere.",
    )
    ingest: IngestConfig
    layouts: Rule = Field(
        Protocol(),
        description="Rule for the layouts that the generator is trained on, probed with, draws and is "
        "measured by: lama-val, synthetic-train, or one of yours.",
    )
    train_detector: DetectorConfig
    train_scorer: DetectorConfig
    extract_attributes: AttributeStageConfig
    train_generator: GeneratorConfig
    synthesize: SynthesisConfig
    retrain: RetrainConfig
    evaluate: EvaluationConfig

    def protocol(self, use: Literal["generator"] | Split) -> Protocol:
        """Which layouts the generator is trained on, or which of a split are drawn."""
        given: dict[str, RuleOrRuns] = {
            "generator": self.train_generator.layouts,
            "train": self.synthesize.train_layouts,
            "val": self.synthesize.val_layouts,
        }
        return protocol_of(given.get(use, "run"), self.layouts)

    @model_validator(mode="before")
    @classmethod
    def _over_preset(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset", "demo")
        if preset not in PRESETS:
            return given
        generator = given.get("train_generator")
        recipe = str(generator.get("recipe")) if isinstance(generator, Mapping) else ""
        # A recipe that is asked for goes over the preset's options.
        named = {"train_generator": RECIPES.get(recipe, {})}
        return merge(merge(PRESETS[preset], named), given)


def changes_to_preset(config: RunConfig) -> dict[str, Any]:
    """The options in which a run differs from its preset, by dotted name."""
    given, preset = (
        dotted(item.model_dump(mode="json"))
        for item in (config, RunConfig.model_validate({"preset": config.preset}))
    )
    return {name: value for name, value in given.items() if preset.get(name, ...) != value}


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
