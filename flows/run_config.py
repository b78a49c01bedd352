"""Options of a run by stage, and how a run is put together from a preset and overrides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from data.artifacts.options import Execution, RuntimeOnly
from data.attributes.options import AttributeConfig, PseudoLabelConfig
from data.errors import InvalidConfig
from data.ingest.options import IngestConfig
from data.layouts.options import (
    AttributePolicy,
    LayoutSource,
    Protocol,
    Rule,
    RuleOrRuns,
    protocol_of,
)
from data.option_errors import HintingModel, OneOf, meant
from data.vocabulary.splits import Split
from flows.presets import PRESETS, PresetName, merge, unmarked
from flows.retrain_config import RetrainConfig, named
from models.detector.config_sources import dotted
from models.detector.given_options import CheckpointConfig, DarknetConfig, ScoringConfig
from models.detector.options import DetectorConfig
from models.generator.drawing_options import (
    COMPILE_HELP,
    DRAWER_HELP,
    IMAGE_SIZE_HELP,
    LAYOUT_SOURCE_HELP,
    STRENGTH_HELP,
    Drawer,
    ImageSize,
    SamplingConfig,
)
from models.generator.options import GeneratorConfig
from models.generator.pretraining_options import PretrainingConfig
from models.generator.recipes import RECIPES
from models.metrics.options import DETECTOR, SCORER


class AttributeStageConfig(HintingModel):
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


class SynthesisConfig(HintingModel):
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
    drawn_by: Drawer = Field("generator", description=f"Of the training sets. {DRAWER_HELP}")
    train_layout_source: LayoutSource = Field("real", description=LAYOUT_SOURCE_HELP)
    train_strength: float = Field(
        1.0, gt=0, le=1, description=f"Of the training sets. {STRENGTH_HELP}"
    )
    num_train_layouts: int | None = Field(
        None, ge=1, description="Real ones evenly spread; null is as many as there are."
    )
    num_val_layouts: int | None = Field(None, ge=1, description="Evenly spread; null is all.")
    images_per_train_layout: int = Field(1, ge=1)
    images_per_val_layout: int = Field(5, ge=1, description="Five in the paper's protocol.")
    image_size: ImageSize = Field("generator", description=IMAGE_SIZE_HELP)
    torch_compile: Annotated[bool, RuntimeOnly] = Field(False, description=COMPILE_HELP)

    @model_validator(mode="after")
    def _real_images_are_there_to_start_from(self) -> Self:
        if self.train_strength == 1:
            return self
        if self.drawn_by != "generator" or self.train_layout_source != "real":
            raise ValueError(
                "train_strength below 1 starts from the layouts' real images: it needs drawn_by generator "
                "and train_layout_source real"
            )
        if self.sampling.sampler == "pndm":
            raise ValueError(
                "train_strength below 1 needs sampling.sampler unipc or dpm-solver++: pndm cannot start "
                "part-way"
            )
        if self.sampling.num_steps(self.train_strength) == 0:
            raise ValueError(
                f"train_strength {self.train_strength} of {self.sampling.num_inference_steps} steps is none: "
                f"take at least {1 / self.sampling.num_inference_steps:.2g}"
            )
        return self


class ScorerResults(HintingModel):
    """COCO results files of any framework, of the real validation images and of the synthetic sets."""

    real: Path
    origin: Path
    easy: Path
    hard: Path


GivenScorer = Annotated[Path | CheckpointConfig | DarknetConfig | ScorerResults, OneOf]
"""A judge of generated images that is the user's."""


class EvaluationConfig(HintingModel):
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
    batch_size: Annotated[int, RuntimeOnly] = Field(
        32, ge=1, description="Images that a detector looks at at once."
    )

    @field_validator("scorers")
    @classmethod
    def _names(cls, values: dict[str, Any]) -> dict[str, Any]:
        reserved = {
            f"{name}_{end}": f"limits of recalls by {name} are called so"
            for name in (DETECTOR, *values)
            for end in ("low", "high")
        }
        reserved[SCORER] = "evaluate.scorer is called so"
        reserved[DETECTOR] = "the detector that gives the attributes is called so"
        return named(values, reserved)


class RunConfig(HintingModel):
    """All options of a run: those of the preset, and over them those given."""

    preset: PresetName = Field("demo", description="Fills in what is not given.")
    ingest: IngestConfig
    layouts: Rule = Field(
        Protocol(),
        description="Rule for the layouts that the generator is trained on, probed with, draws and is "
        "measured by: lama-val, synthetic-train, or one of yours.",
    )
    train_detector: DetectorConfig
    train_scorer: DetectorConfig
    extract_attributes: AttributeStageConfig
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    pretrain_generator: PretrainingConfig = PretrainingConfig()
    train_generator: GeneratorConfig
    synthesize: SynthesisConfig
    retrain: RetrainConfig
    evaluate: EvaluationConfig
    execution: Execution = Execution()

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
        of_recipe = {"train_generator": RECIPES.get(recipe, {})}
        base = merge(PRESETS[preset], of_recipe)
        merged = merge(base, given)
        rules = _over_rule_of_run(base, given, merged.get("layouts", {}))
        return unmarked(merge(merged, rules))


_RULES = (
    ("train_generator", "layouts"),
    ("synthesize", "train_layouts"),
    ("synthesize", "val_layouts"),
)
"""Options that may have a rule for layouts of their own in place of the run's."""


def _over_rule_of_run(
    base: Mapping[str, Any], given: Mapping[str, Any], of_run: Any
) -> dict[str, Any]:
    """The rules that say in part how they differ from the run's, whole."""
    rules: dict[str, Any] = {}
    for group, name in _RULES:
        inside = given.get(group)
        rule = inside.get(name) if isinstance(inside, Mapping) else None
        if isinstance(rule, Mapping) and base.get(group, {}).get(name, "run") == "run":
            whole = merge({name: of_run}, {name: rule})
            rules[group] = rules.get(group, {}) | whole
    return rules


def changes_to_preset(config: RunConfig) -> dict[str, Any]:
    """The options in which a run differs from its preset, by dotted name; None for those that it has not."""
    given, preset = (
        dotted(item.model_dump(mode="json"))
        for item in (config, RunConfig.model_validate({"preset": config.preset}))
    )
    changed = {name: value for name, value in given.items() if preset.get(name, ...) != value}
    there = tuple(f"{name}." for name in given)
    return changed | {name: None for name in preset if not f"{name}.".startswith(there)}


def has_data(config: RunConfig) -> bool:
    """Whether there is a data set: the user's, or the embedded one of a preset that has it."""
    return bool(config.ingest.splits or PRESETS[config.preset]["ingest"])


def _given(item: ErrorDetails) -> str:
    """An option's value; what is wrong with several together says so by itself."""
    together = item["type"] == "value_error" and isinstance(item["input"], Mapping)
    return "" if together else f" (got {item['input']!r})"


def build_run(preset: str, overrides: Mapping[str, Any]) -> RunConfig:
    """Return a preset's run with options laid over it.

    Raises:
        InvalidConfig: the preset, an option or a value does not exist; the message names it.
    """
    if preset not in PRESETS:
        raise InvalidConfig(
            f"unknown preset {preset!r}: choose one of {', '.join(PRESETS)}{meant(preset, PRESETS)}"
        )
    if (other := overrides.get("preset", preset)) != preset:
        raise InvalidConfig(
            f"preset = {other!r} among the options of {preset}: name the preset on the command line"
        )
    try:
        return RunConfig.model_validate({**overrides, "preset": preset})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}{_given(item)}"
            for item in error.errors()
        )
        raise InvalidConfig(
            f"preset {preset} with these options is not valid: {problems}"
        ) from error
