"""What a score is worth in real images: the score of detectors that learned from real images alone.

Protocol of `n_eff = f⁻¹(score)`: a curve f of score over number of real images is fitted, and an arm of
real and synthetic images is worth as many more real images as its score lies along that curve.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from models.metrics.comparison import percentile_interval
from models.metrics.interval import Interval, format_limits

_ROUNDING = 1e-9
"""A rise of the scores along the ruler that is this small a share of them is rounding."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """Score over the logarithm of the number of real images, linear between the numbers measured.

    Attributes:
        sizes: numbers of real images, ascending.
        scores: of each, strictly ascending with them.
        pools: the numbers measured, ascending, that each size stands for.
    """

    sizes: tuple[float, ...]
    scores: tuple[float, ...]
    pools: tuple[tuple[int, ...], ...]

    def num_images(self, score: float) -> float:
        """Real images of this score, never extrapolated.

        Returns:
            -inf below the score of the smallest number and inf above that of the largest; NaN where more
            images do not raise the score, so that it measures nothing.
        """
        if len(self.sizes) < 2:
            return math.nan
        if score < self.scores[0]:
            return -math.inf
        if score > self.scores[-1]:
            return math.inf
        return float(np.exp(np.interp(score, self.scores, np.log(self.sizes))))

    def place(self, num_images: int) -> int | None:
        """Index of the size whose pool has a number of images within its ends; None where none has."""
        within = (i for i, pool in enumerate(self.pools) if pool[0] <= num_images <= pool[-1])
        return next(within, None)


def fit_ruler(num_images: Sequence[int], scores: Sequence[float]) -> Ruler:
    """Make a ruler of measured scores; several seeds of one number of images repeat the number.

    More images cannot score worse: where measured means fall, they are pooled by isotonic regression
    (Barlow et al., 1972), and sizes of one score become one, their geometric mean. A single line over the
    logarithm of all sizes would not go through what was measured: real curves bend.

    Raises:
        ValueError: less than two different numbers, one below 1, or not as many scores.
    """
    if len(num_images) != len(scores) or len(set(num_images)) < 2 or min(num_images) < 1:
        raise ValueError(
            f"{len(scores)} scores at {sorted(set(num_images))} real images: a ruler needs a score for "
            "every entry and at least two different numbers"
        )
    sizes, place, counts = np.unique(num_images, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=scores) / counts
    rising = isotonic_regression(means, weights=counts).x
    rounding = _ROUNDING * np.abs(rising).max()
    blocks = np.cumsum(np.diff(rising, prepend=rising[0]) > rounding)
    logs = np.bincount(blocks, weights=np.log(sizes)) / np.bincount(blocks)
    levels = np.bincount(blocks, weights=rising) / np.bincount(blocks)
    pools = np.split(sizes, np.flatnonzero(np.diff(blocks)) + 1)
    return Ruler(
        tuple(np.exp(logs).tolist()),
        tuple(levels.tolist()),
        tuple(tuple(pool.tolist()) for pool in pools),
    )


@dataclass(frozen=True, slots=True)
class Worth:
    """What the synthetic images of an arm are worth.

    Attributes:
        real_images: gain in real images; -inf and inf where the arm scores less or more than the
            ruler measures, which are results; NaN only where the ruler has no slope, or none at `num_real`.
        num_synthetic: synthetic images that have it.
        num_real: real images beside them.
    """

    real_images: Interval
    num_synthetic: int
    num_real: int

    @property
    def exchange_rate(self) -> Interval:
        """Synthetic images per real one, which falls as the gain rises.

        inf where they are worth no real image, 0 where they are worth more of them than the ruler
        measures, NaN where that cannot be said: less than the ruler measures is still worth some
        where there are no real images beside them.
        """
        gain = self.real_images
        if self._is_below:
            return Interval(math.nan, 0.0, math.inf)
        return Interval(
            *(_exchange_rate(self.num_synthetic, g) for g in (gain.value, gain.high, gain.low))
        )

    @property
    def words(self) -> str:
        """The same as a sentence without its full stop."""
        gain = self.real_images.value
        if math.isnan(gain):
            return "cannot be said: more real images do not score better there"
        if gain == math.inf:
            return "worth more real images than the ruler measures"
        if self._is_below:
            return "worth fewer real images than the ruler measures"
        if gain == -math.inf:
            return "worth no real image: scores less than the ruler measures"
        shown = format_limits(self.real_images, most_decimals=0)
        if gain <= 0:
            return f"worth no real image: a gain of {shown}"
        count, _, limits = shown.partition(" ")
        more = "more " if self.num_real else ""
        return f"as good as {count} {more}real images {limits}" + (
            f", {format_limits(self.exchange_rate)} synthetic images per real one"
            if self.num_synthetic
            else ""
        )

    @property
    def _is_below(self) -> bool:
        """Whether it is somewhere between none and the ruler's smallest number."""
        return self.num_real == 0 and self.real_images.value == -math.inf


def worth(
    ruler_points: Mapping[int, Sequence[float]],
    arm_scores: Sequence[float],
    num_real: int,
    num_synthetic: int,
    num_draws: int = 2000,
    seed: int = 0,
) -> Worth:
    """Measure an arm of real and synthetic images in real images.

    The gain is g = n_eff - `num_real` of the mean score, the exchange rate `num_synthetic` / g. It
    cannot be said where the fit pools `num_real` with other numbers. Its 95 % interval is the percentile
    bootstrap (Efron, 1979) over the seeds, drawn with replacement for ruler and arm together; where a draw
    pools `num_real`, the pool's size stands for it: less than the pool scores is no gain. One seed has
    infinite limits. With few seeds it is too narrow: n seeds make no more than (2n-1)!/(n!(n-1)!)
    different draws.

    Args:
        ruler_points: number of real images to its scores by seed.
        arm_scores: by seed, the same seeds in the same order.
        num_real: real images of the arm; 0 for one of synthetic images alone.
        num_synthetic: its synthetic images; 0 for an arm of more real images or more passes.
        num_draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the scores are not of equally many seeds, or the ruler cannot be fitted.
    """
    num_seeds = len(arm_scores)
    if num_seeds == 0 or {len(scores) for scores in ruler_points.values()} != {num_seeds}:
        raise ValueError(f"{num_seeds} seeds of the arm: every point of the ruler needs the same")
    scores = np.array([arm_scores, *ruler_points.values()], dtype=np.float64)
    sizes, means = list(ruler_points), scores.mean(axis=1)
    ruler = fit_ruler(sizes, means[1:].tolist())
    place = ruler.place(num_real)
    pooled = place is not None and len(ruler.pools[place]) > 1
    gain = math.nan if pooled else _gain(ruler, means[0], num_real)
    if num_seeds == 1 or math.isnan(gain):
        return Worth(Interval(gain, -math.inf, math.inf), num_synthetic, num_real)
    drawn = np.random.default_rng(seed).integers(num_seeds, size=(num_draws, num_seeds))
    draws = np.array(
        [
            _gain(fit_ruler(sizes, column[1:].tolist()), column[0], num_real)
            for column in scores[:, drawn].mean(axis=2).T
        ]
    )
    return Worth(percentile_interval(gain, draws), num_synthetic, num_real)


def _gain(ruler: Ruler, score: float, num_real: int) -> float:
    """Real images gained over those that the ruler has at `num_real`.

    Equally many seeds at every size: the fit to the means is that to all the scores.
    """
    place = ruler.place(num_real)
    own = num_real if place is None else ruler.num_images(ruler.scores[place])
    return ruler.num_images(score) - own


def _exchange_rate(num_synthetic: int, gain: float) -> float:
    return math.inf if gain <= 0 else num_synthetic / gain
