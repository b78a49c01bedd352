"""Arms: detectors trained on different images, and how they compare."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.metrics.comparison import (
    Verdict,
    holm,
    paired_interval,
    paired_p_value,
    seeds_needed,
    verdict,
)
from models.metrics.interval import LEVEL, Interval
from models.metrics.ruler import Worth, worth

REAL = "real"
"""The arm that others are compared with."""

MAP = "map"

Over = Literal["seeds", "images", "nothing"]
"""What the interval of a difference is over."""


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One trained detector.

    Attributes:
        detector: name of its options.
        arm: what it was trained on.
        seed: of the training.
        num_real: real training images.
        num_synthetic: synthetic ones.
        num_pseudo_labelled: real ones with a detector's labels.
        iterations: optimiser steps.
        passes: how often it saw each training image; None where it saw none.
        added_passes: how often each of the others, synthetic or spare; None where there are none.
        augmentation: what else it saw of them, as its options name it.
        metrics: COCO's numbers by name, those of classes too; None where there is no such object.
    """

    detector: str
    arm: str
    seed: int
    num_real: int
    num_synthetic: int
    num_pseudo_labelled: int
    iterations: int
    passes: float | None
    added_passes: float | None
    augmentation: str
    metrics: Mapping[str, float | None]

    @property
    def map(self) -> float:
        """COCO's mAP; NaN where there is no object at all."""
        value = self.metrics[MAP]
        return math.nan if value is None else value


Bootstrap = Callable[[ArmResult, ArmResult], tuple[Interval, float]]
"""Difference of two detectors' mAP with an interval over the images, and its p value."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two arms of one detector, in one number.

    Attributes:
        metric: name of the number.
        seeds: that both arms have.
        of_mean: mean of the first arm.
        versus_mean: mean of the second.
        gain: first less second, paired by seed.
        over: what the interval is over: seeds, or with one seed the images, or nothing.
        p_value: of the paired t test, or of the bootstrap; NaN where the interval is over nothing.
        adjusted_p: after Holm's correction for all contrasts of the detector; None where none was made.
        verdict: None for numbers that no question was asked about.
        seeds_needed: with which the gain would tell, if it is what it seems; None where that is not known.
    """

    detector: str
    of: str
    versus: str
    metric: str
    seeds: tuple[int, ...]
    of_mean: float
    versus_mean: float
    gain: Interval
    over: Over
    p_value: float
    adjusted_p: float | None = None
    verdict: Verdict | None = None
    seeds_needed: int | None = None


def by_seed(results: Sequence[ArmResult], arm: str) -> dict[int, ArmResult]:
    """The detectors of an arm."""
    return {item.seed: item for item in results if item.arm == arm}


def compare(
    results: Sequence[ArmResult], contrasts: Sequence[tuple[str, str]], bootstrap: Bootstrap
) -> list[Contrast]:
    """Answer what was asked of the arms of one detector, in mAP; and the other numbers beside it.

    Every arm's gain over `real` is among them, with a verdict where it was asked for.

    Questions whose arms have no seed in common are left out.

    Args:
        results: of one detector.
        contrasts: the first arm against the second; all of them are one family for Holm's correction.
        bootstrap: gives the interval where there is one seed.
    """
    asked = [found for pair in contrasts if (found := _contrast(results, pair, MAP, bootstrap))]
    adjusted = holm([item.p_value for item in asked])
    level = 1 - (1 - LEVEL) / max(
        len(asked), 1
    )  # what Holm's correction asks of the first at worst
    answers = [_judged(item, p, results, level) for item, p in zip(asked, adjusted, strict=True)]
    others = {name: None for item in results for name in item.metrics if name != MAP}
    arms = dict.fromkeys(item.arm for item in results if item.arm != REAL)
    unasked = [(arm, REAL) for arm in arms if (arm, REAL) not in contrasts]
    beside = [_contrast(results, pair, MAP, bootstrap) for pair in unasked]
    beside += [_contrast(results, pair, name) for pair in (*contrasts, *unasked) for name in others]
    return answers + [item for item in beside if item]


def _contrast(
    results: Sequence[ArmResult],
    pair: tuple[str, str],
    metric: str,
    bootstrap: Bootstrap | None = None,
) -> Contrast | None:
    of, versus = (by_seed(results, arm) for arm in pair)
    scores = [
        (seed, of[seed].metrics.get(metric), versus[seed].metrics.get(metric))
        for seed in sorted(of.keys() & versus.keys())
    ]
    known = [(seed, a, b) for seed, a, b in scores if a is not None and b is not None]
    if not known:
        return None
    seeds, first, second = zip(*known, strict=True)
    gain, p_value = paired_interval(first, second), paired_p_value(first, second)
    over: Over = "seeds" if len(seeds) > 1 else "images" if bootstrap else "nothing"
    if len(seeds) == 1 and bootstrap:
        gain, p_value = bootstrap(of[seeds[0]], versus[seeds[0]])
    return Contrast(
        detector=results[0].detector,
        of=pair[0],
        versus=pair[1],
        metric=metric,
        seeds=seeds,
        of_mean=sum(first) / len(first),
        versus_mean=sum(second) / len(second),
        gain=gain,
        over=over,
        p_value=p_value,
    )


def _judged(
    contrast: Contrast, adjusted_p: float, results: Sequence[ArmResult], level: float
) -> Contrast:
    of, versus = (by_seed(results, arm) for arm in (contrast.of, contrast.versus))
    differences = [of[seed].map - versus[seed].map for seed in contrast.seeds]
    return replace(
        contrast,
        adjusted_p=adjusted_p,
        verdict=verdict(contrast.gain, adjusted_p),
        seeds_needed=seeds_needed(differences, level),
    )


def arm_worth(results: Sequence[ArmResult], arm: str) -> Worth | None:
    """What an arm scores in real images, by the ruler of the arms of real images alone.

    Args:
        results: of one detector.

    Returns:
        None where the ruler has less than two sizes, or a seed is missing somewhere, and of the
        ruler's own arms; and of one that was trained for longer or shorter, which is worth something too.
    """
    found = by_seed(results, arm)
    like = {_apart_from_size(item) for item in results if item.arm == REAL}
    ruler: dict[int, dict[int, float]] = {}
    for item in results:
        if item.added_passes in {None, item.passes} and _apart_from_size(item) in like:
            if item.arm == arm:
                return None
            ruler.setdefault(item.num_real, {})[item.seed] = item.map
    seeds = sorted(found)
    complete = all(scores.keys() >= found.keys() for scores in ruler.values())
    if len(ruler) < 2 or not found or not complete:
        return None
    example = found[seeds[0]]
    if example.iterations not in {item.iterations for item in results if item.arm == REAL}:
        return None
    return worth(
        {count: [scores[seed] for seed in seeds] for count, scores in ruler.items()},
        [found[seed].map for seed in seeds],
        example.num_real,
        example.num_synthetic,
    )


def _apart_from_size(item: ArmResult) -> tuple[int, int, str, int]:
    """What detectors on real images alone have in common."""
    return item.num_synthetic, item.num_pseudo_labelled, item.augmentation, item.iterations
