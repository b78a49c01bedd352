"""The detectors that `retrain` trains and compares: arms by detector and seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data.layouts.options import POLICIES, AttributePolicy
from flows.retrain_config import Arm, RetrainConfig, is_mixed, policy_of, ruler_arm
from models.detector.options import Budget
from models.metrics.options import MAIN


@dataclass(frozen=True, slots=True)
class TrainedArm:
    """One detector to train and to compare.

    Attributes:
        name: of the arm, as people read it.
        detector: its name.
        seed: of the training.
        options: what it is trained on.
        policy: of the synthetic images that it needs; None for none.
    """

    name: str
    detector: str
    seed: int
    options: Mapping[str, Any]
    policy: AttributePolicy | None = None

    @property
    def step(self) -> str:
        """What its steps are about."""
        detector = "" if self.detector == MAIN else f"{self.detector} "
        return f"{detector}{self.name} seed {self.seed}"

    @property
    def place(self) -> str:
        """Its name among a comparison's inputs."""
        return f"{self.detector}/{self.name}/{self.seed}"


def arms_of(retrain: RetrainConfig) -> Iterator[TrainedArm]:
    """All detectors of the comparison: arms, then the ruler's."""
    for seed in retrain.seeds:
        for detector in retrain.detectors:
            for name, (arm, budget) in retrain.trained_arms.items():
                options, policy = _arm_options(retrain, arm, budget)
                yield TrainedArm(name, detector, seed, options, policy)
            for multiple in retrain.ruler:
                options = {"real_multiple": multiple}
                yield TrainedArm(ruler_arm(multiple), detector, seed, options)


def _arm_options(
    retrain: RetrainConfig, arm: Arm, budget: Budget
) -> tuple[dict[str, Any], AttributePolicy | None]:
    """Options of an arm's training over those of its detector, and the policy of its synthetic images."""
    if arm == "synthetic-only":
        return {"images": "synthetic"}, retrain.policy
    if not is_mixed(arm):
        return {"augmentation": "copy-paste"} if arm == "real+copy-paste" else {}, None
    mixture = {"added_share": retrain.added_share, "real_only_end": retrain.real_only_end}
    if arm == "self-training":
        return {"images": "real+pseudo", **mixture}, None
    images = {"more-real": "real+spare", "real-repeated": "real"}.get(arm, "real+synthetic")
    return {"images": images, "budget": budget, **mixture}, policy_of(arm) or retrain.policy


def spare_users(retrain: RetrainConfig) -> list[str]:
    """What has spare real images, as people call it."""
    arms = ["the arm more-real"] if "more-real" in retrain.arms else []
    return arms + [f"retrain.ruler {multiple:g}" for multiple in retrain.ruler if multiple > 1]


def training_policies(retrain: RetrainConfig) -> list[AttributePolicy]:
    """Those of the synthetic training sets that the arms need."""
    needed = {arm.policy for arm in arms_of(retrain)}
    return [policy for policy in POLICIES if policy in needed]
