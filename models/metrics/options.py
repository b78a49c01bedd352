"""Options of what generated images and retrained detectors are measured by. Light: no torch."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from data.artifacts.digests import DigestMemory
from data.artifacts.options import AddedLater, Options, RuntimeOnly, ShardedOptions
from data.errors import InvalidModel
from data.layouts.options import EVERYTHING, Protocol
from data.vocabulary.splits import Split

FEATURES_NAME = "features.parquet"
"""Table of image ids and their features in an artifact."""

MIRRORED = "mirrored"
"""Its column of features of the mirror images."""


class FeatureOptions(ShardedOptions):
    """Which images an extractor looks at."""

    extractor: Literal["inception", "random"] = "inception"
    inception_weights: Path | None = Field(
        None, description="InceptionV3 weights file, where nothing may be downloaded."
    )
    resolution: int = Field(ge=1, description="Images are squashed to this square, pixels.")
    split: Split = "val"
    mirrored: Annotated[bool, AddedLater] = Field(
        False, description="Look at the images in a mirror too."
    )

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the weights.

        Raises:
            InvalidModel: there is no such file.
        """
        if self.inception_weights is None:
            return {}
        if not self.inception_weights.is_file():
            raise InvalidModel(f"evaluate.inception_weights {self.inception_weights}: no such file")
        return {"inception_weights": digests.file(self.inception_weights)}

    def downloads(self) -> tuple[str, ...]:
        """InceptionV3, unless it is given."""
        if self.extractor == "random" or self.inception_weights:
            return ()
        return ("InceptionV3's weights, by torch-fidelity, if they are not in torch's cache",)


class MeasureOptions(Options):
    """When an object counts as found, and which training images stand for other real ones."""

    protocol: Protocol = Field(
        EVERYTHING, description="Of the validation layouts; the floor's real images obey it too."
    )

    recall_iou_threshold: float = Field(0.5, gt=0, lt=1)
    recall_score_threshold: float = Field(0.3, ge=0, lt=1)


MAIN = "main"
"""Name of the detector of `retrain.detector` among those that are compared; its numbers need no name."""

SCORER, DETECTOR = "scorer", "detector"
"""Names of the judges of generated images that a run has itself: the independent detector, and the one that
gave the attributes."""


class ComparisonOptions(Options):
    """What is asked of the trained detectors."""

    contrasts: tuple[tuple[str, str], ...] = Field(
        description="Named before the run: the first arm against the second."
    )
    missing: tuple[str, ...] = Field(
        (), description="Detectors (detector/arm/seed) that a run has no result of."
    )


class ReportOptions(Options):
    """What a report says of the run beside what was measured."""

    preset: str
    changes: Annotated[dict[str, Any], RuntimeOnly] = Field(
        default_factory=dict, description="Options that differ from the preset's, by dotted name."
    )


class Question(Options):
    """Something that a study asks of its runs.

    Numbers are those of `detdiffusion report --json`. The answer is the difference, seed by seed, of those
    neighbours in `order` that decide: positive where all lie as asked.
    """

    name: str = Field(pattern="^[a-z0-9_]+$")
    text: str = Field(description="What is claimed, in words.")
    order: tuple[str, ...] = Field(
        min_length=2, description='"RUN: NUMBER", the one that is to be highest first.'
    )

    @field_validator("order")
    @classmethod
    def _run_and_number(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        _require_pairs(values, "NUMBER")
        return values

    @property
    def sides(self) -> tuple[tuple[str, str], ...]:
        """Run and number, the highest first."""
        return tuple(map(run_and_name, self.order))


def run_and_name(text: str) -> tuple[str, str]:
    """The parts of "RUN: NAME"; an empty one is missing."""
    run, _, name = text.partition(":")
    return run.strip(), name.strip()


def _require_pairs(texts: Iterable[str], what: str) -> None:
    wrong = [text for text in texts if not all(run_and_name(text))]
    if wrong:
        raise ValueError(f'write "RUN: {what}", not {wrong[0]!r}')


class ConclusionOptions(Options):
    """What a study asks."""

    questions: tuple[Question, ...] = ()
    numbers: Annotated[dict[str, str], AddedLater] = Field(
        default_factory=dict,
        description='Names of a study\'s own for "RUN: NUMBER"; an interval follows its number.',
    )
    best_of: Annotated[tuple[str, ...], AddedLater] = Field(
        (),
        description='"RUN: ARM" of arms as their numbers name them (real_hard); that of the greatest gain is '
        "best_arm.",
    )

    @field_validator("numbers", "best_of")
    @classmethod
    def _runs_and_names(cls, values: Any) -> Any:
        _require_pairs(values.values() if isinstance(values, dict) else values, "NAME")
        return values

    @field_validator("questions")
    @classmethod
    def _distinct(cls, values: tuple[Question, ...]) -> tuple[Question, ...]:
        if len({item.name for item in values}) < len(values):
            raise ValueError("each question has a name of its own")
        return values

    @property
    def runs(self) -> set[str]:
        """Names of all runs that it names."""
        sides = {run for question in self.questions for run, _ in question.sides}
        return sides | {run_and_name(text)[0] for text in (*self.numbers.values(), *self.best_of)}
