"""Whether one arm of an experiment scores better than another, judged by pairs of equal seeds."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.special import stdtr, stdtrit

from models.metrics.interval import LEVEL, Interval

Verdict = Literal["helps", "costs", "cannot tell"]

_ROUNDING = 1e-12
"""Differences of scores that are this small a share of the scores are rounding."""

_MOST_SEEDS = 1000
"""An effect that takes more seeds than this will not be looked for."""

_LARGEST_EFFECT = 1e5
"""In standard deviations: two pairs find it for certain, and beyond it `stats.nct` gives NaN."""


def student_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean with the interval of Student (1908), mean ± t·s/√n with n-1 degrees of freedom.

    A single value has infinite limits.

    Raises:
        ValueError: there is no value.

    >>> student_interval([3.0])
    Interval(value=3.0, low=-inf, high=inf)
    """
    if len(values) == 0:
        raise ValueError("a mean needs at least one value")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - reach, mean + reach)


def paired_interval(of: Sequence[float], versus: Sequence[float], level: float = LEVEL) -> Interval:
    """Student's interval of the differences `of - versus`, paired by position.

    Raises:
        ValueError: the two are not equally long, or empty.
    """
    return student_interval(_differences(of, versus).tolist(), level)


def paired_p_value(of: Sequence[float], versus: Sequence[float]) -> float:
    """Two-sided p value of Student's paired t test (1908); NaN for a single pair.

    Differences that are all the same leave no doubt: 0 where they are not zero, 1 where they are.

    Raises:
        ValueError: the two are not equally long, or empty.
    """
    differences = _differences(of, versus)
    num_pairs = len(differences)
    if num_pairs == 1:
        return math.nan
    rounding = _ROUNDING * max(np.abs(of).max(), np.abs(versus).max())
    mean = abs(float(differences.mean()))
    error = float(differences.std(ddof=1)) / math.sqrt(num_pairs)
    if np.ptp(differences) <= rounding or error == 0:  # squares of the least numbers are zero
        return 1.0 if mean <= rounding else 0.0
    return float(2 * stdtr(num_pairs - 1, -mean / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values of several contrasts by the step-down method of Holm (1979).

    The k-th smallest of m is multiplied by m - k + 1 and is no smaller than those before it. NaN
    stays NaN and does not count among the m.

    >>> holm([0.5, 0.01, math.nan])
    [0.5, 0.02, nan]
    """
    adjusted = np.array(p_values, dtype=np.float64)
    num_known = np.count_nonzero(~np.isnan(adjusted))
    order = np.argsort(adjusted, kind="stable")[:num_known]  # NaN is sorted last
    scaled = adjusted[order] * np.arange(num_known, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()


def verdict(interval: Interval, adjusted_p: float | None = None) -> Verdict:
    """Say what an interval of differences shows.

    Args:
        interval: confidence interval; higher is better.
        adjusted_p: p value after `holm`, which must agree; None or NaN where there is none.
    """
    if adjusted_p is not None and adjusted_p + LEVEL >= 1:
        return "cannot tell"
    if interval.low > 0:
        return "helps"
    return "costs" if interval.high < 0 else "cannot tell"


def seeds_needed(
    differences: Sequence[float], level: float = LEVEL, power: float = 0.8
) -> int | None:
    """Count the paired seeds that would show the observed mean difference to be one.

    The smallest n for which a two-sided paired t test is significant in the observed direction with
    probability `power`, if the observed mean and standard deviation are the true ones:
    P(T > t(n-1)) of the noncentral t distribution with noncentrality √n·mean/s (Cohen, Statistical
    Power Analysis, 1988, chapter 2). It is as uncertain as the standard deviation of few differences.

    Returns:
        At least 2; None where a mean of zero or less than two differences say nothing, or where
        more than 1,000 seeds were needed.
    """
    if len(differences) < 2 or (mean := abs(float(np.mean(differences)))) == 0:
        return None
    deviation = max(float(np.std(differences, ddof=1)), mean / _LARGEST_EFFECT)
    counts = range(2, _MOST_SEEDS + 1)
    at = bisect_left(counts, power, key=lambda n: _power(n, mean / deviation, level))
    return counts[at] if at < len(counts) else None


def percentile_interval(value: float, draws: Float64[np.ndarray, " draws"]) -> Interval:
    """Limits between which the share `LEVEL` of bootstrap draws lies (Efron, 1979).

    They are draws themselves, never between two, since infinite ones are allowed. A draw of NaN could
    have been anything: it lies below the lower limit and above the upper one.
    """
    tail = 50 * (1 - LEVEL)
    limits = [
        np.percentile(np.where(np.isnan(draws), unknown, draws), percent, method="inverted_cdf")
        for unknown, percent in ((-math.inf, tail), (math.inf, 100 - tail))
    ]
    return Interval(value, *map(float, limits))


def _differences(of: Sequence[float], versus: Sequence[float]) -> Float64[np.ndarray, " pairs"]:
    if len(of) != len(versus) or len(of) == 0:
        raise ValueError(f"{len(of)} and {len(versus)} scores make no pairs")
    return np.subtract(of, versus, dtype=np.float64)


def _power(num_pairs: int, effect: float, level: float) -> float:
    """Probability that a paired t test finds an effect, in standard deviations."""
    from scipy import stats  # noqa: PLC0415  # takes longer than all that is imported above

    critical = stdtrit(num_pairs - 1, (1 + level) / 2)
    return float(stats.nct.sf(critical, num_pairs - 1, effect * math.sqrt(num_pairs)))
