import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from models.metrics.comparison import (
    holm,
    paired_interval,
    paired_p_value,
    percentile_interval,
    seeds_needed,
    student_interval,
    verdict,
)
from models.metrics.interval import Interval

OF, VERSUS = [0.55, 0.58, 0.57, 0.61, 0.56], [0.54, 0.55, 0.58, 0.58, 0.55]

scores = st.floats(0, 1, allow_subnormal=False)
p_values = st.lists(st.floats(0, 1) | st.just(math.nan), max_size=8)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_paired_test_equals_scipy(level):
    oracle = stats.ttest_rel(OF, VERSUS)
    limits = oracle.confidence_interval(level)
    found = paired_interval(OF, VERSUS, level)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high), abs=1e-12)
    assert found.value == pytest.approx(np.mean(OF) - np.mean(VERSUS))
    assert paired_p_value(OF, VERSUS) == pytest.approx(oracle.pvalue, abs=1e-12)


@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=6))
def test_p_value_and_interval_agree_on_every_pair_of_arms(pairs):
    of, versus = zip(*pairs, strict=True)
    interval, p = paired_interval(of, versus), paired_p_value(of, versus)
    if p not in {0.0, 1.0} and abs(p - 0.05) > 1e-9:
        assert (interval.low > 0 or interval.high < 0) == (p < 0.05)
    mirrored = paired_interval(versus, of)
    assert (mirrored.low, mirrored.high) == (-interval.high, -interval.low)
    assert paired_p_value(versus, of) == p


def test_interval_of_known_values():
    # Mean 2, s = 1, n = 3: the 97.5 % quantile of t with 2 degrees of freedom is 4.302653.
    found = student_interval([1.0, 2.0, 3.0])
    reach = 4.302653 / math.sqrt(3)
    assert (found.low, found.value, found.high) == pytest.approx((2 - reach, 2, 2 + reach))


def test_one_pair_decides_nothing():
    assert paired_interval([0.6], [0.5]) == Interval(pytest.approx(0.1), -math.inf, math.inf)
    assert math.isnan(paired_p_value([0.6], [0.5]))


@pytest.mark.parametrize(
    ("of", "versus", "p"),
    [
        ([0.3, 0.2, 0.7], [0.2, 0.1, 0.6], 0.0),  # 0.1 each time, but for rounding
        ([0.3, 0.2], [0.3, 0.2], 1.0),
        ([0.1 + 0.2, 0.4], [0.3, 0.4], 1.0),
    ],
)
def test_equal_differences_leave_no_doubt(of, versus, p):
    assert paired_p_value(of, versus) == p


@pytest.mark.parametrize("function", [paired_interval, paired_p_value])
@pytest.mark.parametrize(("of", "versus"), [([], []), ([0.1, 0.2], [0.1])])
def test_scores_without_partner_are_refused(function, of, versus):
    with pytest.raises(ValueError, match="make no pairs"):
        function(of, versus)


def test_no_value_has_no_mean():
    with pytest.raises(ValueError, match="at least one value"):
        student_interval([])


def test_holm_by_hand():
    # 4·.01 = .04; 3·.015 = .045; 2·.04 = .08; 1·.03 would be smaller, but .03 comes before .04.
    adjusted = holm([0.04, 0.01, math.nan, 0.03, 0.015])
    assert adjusted == pytest.approx([0.06, 0.04, math.nan, 0.06, 0.045], nan_ok=True)


def slow_holm(p_values):
    adjusted = [math.nan] * len(p_values)
    remaining = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    largest = 0.0
    while remaining:
        smallest = min(remaining, key=lambda i: p_values[i])
        largest = max(largest, min(1.0, len(remaining) * p_values[smallest]))
        adjusted[smallest] = largest
        remaining.remove(smallest)
    return adjusted


@given(p_values)
def test_holm_equals_a_slow_loop(values):
    assert holm(values) == pytest.approx(slow_holm(values), nan_ok=True, abs=1e-15)


UP, DOWN, OPEN = Interval(0.02, 0.01, 0.03), Interval(-0.02, -0.03, -0.01), Interval(0.0, -0.1, 0.1)


@pytest.mark.parametrize(
    ("interval", "adjusted_p", "expected"),
    [
        (UP, None, "helps"),
        (UP, 0.04, "helps"),
        (UP, math.nan, "helps"),
        (UP, 0.05, "cannot tell"),
        (DOWN, None, "costs"),
        (DOWN, 0.04, "costs"),
        (DOWN, 0.06, "cannot tell"),
        (OPEN, None, "cannot tell"),
        (OPEN, 0.001, "cannot tell"),
        (Interval(0.1, -math.inf, math.inf), math.nan, "cannot tell"),
        (Interval(0.0, 0.0, 0.0), None, "cannot tell"),
        (Interval(math.nan, math.nan, math.nan), None, "cannot tell"),
    ],
)
def test_verdicts(interval, adjusted_p, expected):
    assert verdict(interval, adjusted_p) == expected


def with_moments(mean, deviation):
    return (mean + deviation * np.array([-1.0, 0.0, 1.0])).tolist()


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_equal_published_sizes(effect, expected):
    # Cohen's small, medium and large effect: G*Power, two-sided paired t test, α = .05, power .8.
    assert seeds_needed(with_moments(effect, 1.0)) == expected
    assert seeds_needed(with_moments(-effect, 1.0)) == expected


@pytest.mark.parametrize(("effect", "level", "power"), [(1.0, 0.95, 0.8), (1.5, 0.99, 0.9)])
def test_seeds_needed_reach_the_power_in_simulation(effect, level, power):
    enough = seeds_needed(with_moments(effect, 1.0), level, power)
    rng = np.random.default_rng(0)

    def share_found(num_pairs):
        draws = rng.normal(effect, 1.0, (20_000, num_pairs))
        result = stats.ttest_1samp(draws, 0, axis=1)
        return np.mean((result.pvalue < 1 - level) & (result.statistic > 0))

    assert share_found(enough - 1) < power <= share_found(enough) + 0.009  # three standard errors


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], None),
        ([0.1], None),
        ([-0.1, 0.1], None),
        (with_moments(0.01, 1.0), None),  # 78,000 seeds
        ([0.1, 0.1, 0.1], 2),
        ([0.1, 0.1 + 1e-16], 2),
    ],
)
def test_seeds_that_cannot_be_counted(differences, expected):
    assert seeds_needed(differences) == expected


def test_percentiles_are_draws_even_where_they_are_infinite():
    draws = np.array([-math.inf] * 3 + [1.0] * 94 + [math.inf] * 3)
    assert percentile_interval(1.0, draws) == Interval(1.0, -math.inf, math.inf)
    assert percentile_interval(1.0, draws[1:-1]) == Interval(1.0, 1.0, 1.0)


def test_a_draw_without_result_could_have_been_anything():
    assert percentile_interval(1.0, np.array([math.nan] * 3 + [1.0] * 97)) == Interval(
        1.0, -math.inf, math.inf
    )


def test_percentiles_of_a_mean_equal_the_normal_closed_form():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    means = values[rng.integers(400, size=(4000, 400))].mean(axis=1)
    found = percentile_interval(values.mean(), means)
    reach = stats.norm.ppf(0.975) * values.std() / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * reach, rel=0.05)
