"""Options of `retrain`: the arms, which are what detectors are trained on, and what is asked of them."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.attributes.options import VerificationOptions
from data.layouts.options import POLICIES, AttributePolicy
from data.option_errors import HintingModel
from models.detector.options import Budget, DetectorConfig
from models.metrics.options import DETECTOR, MAIN

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
    "self-training",
]
"""What a detector is trained on.

`real+origin`, `real+easy` and `real+hard` have synthetic images of that policy; the others that need some, by
content or by number, have those of `RetrainConfig.policy`. `self-training` has pseudo-labelled images.
"""


class RetrainConfig(HintingModel):
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
    added_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of every batch that images other than the training images have, synthetic, "
        "spare or pseudo-labelled ones, in the arms that have such too; null: in proportion to their number.",
    )
    real_only_end: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Last share of the iterations, in which those arms see the training images alone.",
    )
    verification: VerificationOptions | None = Field(
        None,
        description="Train on what a detector's findings leave of the labels of the synthetic sets; null: on "
        "what was asked for.",
    )
    box_noise: float = Field(
        0.0,
        ge=0,
        description="A control: standard deviation by which the edges of real training boxes are moved, in "
        "shares of their side. What labels as wrong as those of generated images cost.",
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
        of_attributes = "detector_map_real is the mAP of the detector that gives the attributes"
        return named(values, {MAIN: "retrain.detector is called so", DETECTOR: of_attributes})

    @model_validator(mode="after")
    def _noise_is_seen(self) -> Self:
        pasting = any(item.augmentation == "copy-paste" for item in self.detectors.values())
        if self.box_noise and (pasting or "real+copy-paste" in self.arms):
            raise ValueError(
                "box_noise is lost where copy-paste takes boxes from masks: leave real+copy-paste out, and "
                "augmentation=flip"
            )
        return self

    @model_validator(mode="after")
    def _pasting_is_another_arm(self) -> Self:
        for name, item in self.detectors.items():
            if item.augmentation == "copy-paste" and "real+copy-paste" in self.arms:
                place = "detector" if name == MAIN else f"others.{name}"
                raise ValueError(
                    f"{place}.augmentation is copy-paste, with which the arm real+copy-paste is real again: "
                    "leave that arm out, or augmentation=flip"
                )
        return self

    @model_validator(mode="after")
    def _share_leaves_both(self) -> Self:
        mixed = [arm for arm in self.arms if is_mixed(arm)]
        if mixed and self.added_share == 0:
            raise ValueError(
                f"added_share is 0, with which no batch has an added image: leave the arm {mixed[0]} out, "
                "or give a share above 0"
            )
        if mixed and self.added_share == 1:
            raise ValueError(
                "added_share is 1, with which no batch has a training image: use the arm synthetic-only in "
                f"place of {mixed[0]}, or give a share below 1"
            )
        return self

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


def named(values: dict[str, Any], reserved: Mapping[str, str]) -> dict[str, Any]:
    """Refuse names that would not be told apart in tables, keys and numbers.

    Args:
        reserved: names that are taken, and why.
    """
    for name in values:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a name: use small letters, digits and single _")
        if name in reserved:
            raise ValueError(f"{name!r} cannot be a name: {reserved[name]}")
    return values


def is_mixed(arm: Arm) -> bool:
    """Whether an arm has other images beside the training images, or is as long as one that has."""
    return bool(policy_of(arm)) or arm in {"more-real", "real-repeated", "self-training"}


def policy_of(arm: Arm) -> AttributePolicy | None:
    """The policy of an arm `real+POLICY`."""
    policy = arm.removeprefix("real+")
    return next((item for item in POLICIES if item == policy), None)
