import math
from fractions import Fraction
from functools import partial
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.metrics import ruler as rulers
from models.metrics.interval import Interval, format_limits
from models.metrics.ruler import Worth, fit_ruler

worth = partial(rulers.worth, num_draws=200)

MEASURED = {600: [0.555, 0.575], 1200: [0.582, 0.599], 3500: [0.603, 0.620]}
STEEP = {100: [0.30, 0.32, 0.31], 200: [0.40, 0.43, 0.41], 400: [0.50, 0.53, 0.51]}


def test_a_ruler_goes_through_the_measured_means():
    ruler = fit_ruler([150, 150, 300, 600, 600], [0.31, 0.33, 0.42, 0.50, 0.48])
    assert ruler.sizes == pytest.approx((150, 300, 600))
    assert ruler.scores == pytest.approx((0.32, 0.42, 0.49))
    assert ruler.num_images(0.42) == pytest.approx(300)
    assert ruler.num_images(0.37) == pytest.approx(math.sqrt(150 * 300))


def test_what_falls_is_pooled():
    ruler = fit_ruler([100, 200, 400, 800], [0.3, 0.5, 0.4, 0.6])
    assert ruler.sizes == pytest.approx((100, math.sqrt(200 * 400), 800))
    assert ruler.scores == pytest.approx((0.3, 0.45, 0.6))
    assert ruler.pools == ((100,), (200, 400), (800,))
    assert [ruler.place(n) for n in (0, 100, 150, 200, 300, 400, 800, 900)] == [
        None, 0, None, 1, 1, 1, 2, None,
    ]  # fmt: skip


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_score_is_never_fewer_images(scores, one, other):
    ruler = fit_ruler([150, 300, 1200], scores)
    low, high = (ruler.num_images(score) for score in sorted([one, other]))
    assert low <= high or math.isnan(low)


@given(st.floats(0.1, 0.9), st.floats(0.01, 0.9), st.integers(2, 900), st.integers(2, 9))
def test_the_ends_of_a_ruler_of_two_points_are_measured(score, rise, smallest, factor):
    ruler = fit_ruler([smallest, smallest * factor], [score, score + rise])
    assert ruler.num_images(ruler.scores[0]) == pytest.approx(smallest)
    assert ruler.num_images(ruler.scores[-1]) == pytest.approx(smallest * factor)


def test_nothing_is_extrapolated():
    ruler = fit_ruler([150, 1200], [0.3, 0.6])
    assert ruler.num_images(0.299) == -math.inf
    assert ruler.num_images(0.601) == math.inf


@pytest.mark.parametrize("scores", [[0.6, 0.5, 0.4], [0.1, 0.1, 0.1], [0.7, 0.7, 0.7]])
def test_a_ruler_that_does_not_rise_measures_nothing(scores):
    assert math.isnan(fit_ruler([150, 300, 700], scores).num_images(0.5))


@pytest.mark.parametrize(
    ("sizes", "scores"),
    [([], []), ([600, 600], [0.5, 0.6]), ([600, 1200], [0.5]), ([0, 600], [0.1, 0.5])],
)
def test_what_makes_no_ruler(sizes, scores):
    with pytest.raises(ValueError, match="a ruler needs"):
        fit_ruler(sizes, scores)


def test_measured_hard_images_are_worth_nothing():
    found = worth(MEASURED, [0.555, 0.562], 600, 512)
    assert found == Worth(Interval(-math.inf, -math.inf, pytest.approx(0, abs=1e-9)), 512, 600)
    assert found.words == "worth no real image: scores less than the ruler measures"


def test_measured_real_images_are_worth_themselves():
    found = worth(MEASURED, MEASURED[1200], 600, 0)
    assert found.real_images == Interval(*[pytest.approx(600)] * 3)
    assert found.words == "as good as 600 more real images (600 to 600)"
    assert worth(MEASURED, MEASURED[600], 600, 0).words.startswith(
        "worth no real image: a gain of 0"
    )


def test_two_seeds_have_the_limits_of_each_alone():
    arm = [0.57, 0.595]
    one, other = (
        worth(
            {n: [scores[i]] for n, scores in MEASURED.items()}, [arm[i]], 600, 600
        ).real_images.value
        for i in (0, 1)
    )
    found = worth(MEASURED, arm, 600, 600).real_images
    assert (found.low, found.high) == pytest.approx((min(one, other), max(one, other)))


def test_real_images_on_a_logarithm_are_worth_themselves():
    found = worth(STEEP, STEEP[200], 100, 300)
    assert found.real_images.value == pytest.approx(100, abs=2)
    gain, rate = found.real_images, found.exchange_rate
    assert rate.value == pytest.approx(300 / gain.value)
    assert (rate.low, rate.high) == pytest.approx((300 / gain.high, 300 / gain.low))
    assert found.words.endswith(f", {format_limits(rate)} synthetic images per real one")


def test_seeds_are_drawn_jointly():
    # Every seed moves ruler and arm by as much, so that no draw can change the gain.
    shifts = np.array([-0.1, 0.0, 0.2, 0.05])
    points = {n: (0.1 * math.log(n) + shifts).tolist() for n in (100, 200, 400)}
    arm = (0.1 * math.log(250) + shifts).tolist()
    found = worth(points, arm, 100, 100).real_images
    assert (found.low, found.value, found.high) == pytest.approx((150, 150, 150))


def test_bootstrap_equals_the_closed_form_of_a_mean():
    # A ruler without noise: the logarithm of n_eff is the mean of the arm, times a constant.
    rng = np.random.default_rng(0)
    arm = 0.1 * math.log(1000) + 0.1 * rng.normal(0, 0.3, 50)
    points = {n: [0.1 * math.log(n)] * 50 for n in (10, 100_000)}
    found = worth(points, arm.tolist(), 0, 0, num_draws=2000).real_images
    reach = 1.96 * (arm / 0.1).std() / math.sqrt(50)
    spread = math.log(found.high) - math.log(found.low)
    assert spread == pytest.approx(2 * reach, rel=0.06)


@pytest.mark.parametrize(
    ("arm", "num_real", "value", "rate", "words"),
    [
        ([0.9] * 3, 100, math.inf, 0.0, "worth more real images than the ruler measures"),
        ([0.1] * 3, 100, -math.inf, math.inf, "scores less than the ruler measures"),
        (STEEP[200], 400, pytest.approx(-200, abs=3), math.inf, "worth no real image: a gain of -"),
        (STEEP[400], 100, pytest.approx(300, abs=5), pytest.approx(1, abs=0.02), "as good as"),
    ],
)
def test_kinds_of_worth(arm, num_real, value, rate, words):
    found = worth(STEEP, arm, num_real, 300)
    assert (found.real_images.value, found.exchange_rate.value) == (value, rate)
    assert words in found.words


def test_no_gain_at_all_costs_infinitely_many():
    found = worth({1: [0.0, 0.0], 100: [1.0, 1.0]}, [0.0, 0.0], 1, 300)
    assert found == Worth(Interval(0.0, 0.0, 0.0), 300, 1)
    assert found.exchange_rate == Interval(math.inf, math.inf, math.inf)
    assert found.words == "worth no real image: a gain of 0 (0 to 0)"


def test_words_have_the_digits_that_their_intervals_allow():
    found = Worth(Interval(4932.4, 812.3, 21_134.2), 120_000, 600)
    assert found.words == (
        "as good as 5,000 more real images (1,000 to 21,000), 24 (6 to 148) synthetic images per real one"
    )
    assert Worth(Interval(-0.3, -7.2, 5.9), 300, 600).words.endswith("a gain of 0 (-7 to 6)")


def test_limits_may_leave_the_ruler():
    found = worth(STEEP, [0.35, 0.60, 0.40], 100, 300)
    assert found.real_images.high == math.inf
    assert math.isfinite(found.real_images.value)
    assert " to ∞)" in found.words
    assert found.exchange_rate.low == 0.0


def test_no_slope_is_the_only_nan():
    found = worth({100: [0.5, 0.6], 200: [0.4, 0.5]}, [0.5, 0.5], 100, 300)
    assert math.isnan(found.real_images.value)
    assert math.isnan(found.exchange_rate.value)
    assert (found.real_images.low, found.real_images.high) == (-math.inf, math.inf)
    assert found.words == "cannot be said: more real images do not score better there"


FALLING = {150: [0.50, 0.50], 300: [0.48, 0.48], 600: [0.60, 0.60]}


@pytest.mark.parametrize("arm", [0.495, 0.48, 0.55, 0.1, 0.9])
@pytest.mark.parametrize("num_real", [150, 200, 300])
def test_where_the_ruler_falls_nothing_can_be_said(arm, num_real):
    found = worth(FALLING, [arm] * 2, num_real, 300)
    assert found.words == "cannot be said: more real images do not score better there"
    assert (found.real_images.low, found.real_images.high) == (-math.inf, math.inf)


def test_a_fall_elsewhere_leaves_what_can_be_said():
    found = worth(FALLING, [0.55, 0.55], 600, 300).real_images
    share = (0.55 - 0.49) / (0.60 - 0.49)
    pooled = math.sqrt(150 * 300)
    assert found.value == pytest.approx(pooled * (600 / pooled) ** share - 600)


def test_no_draw_has_a_gain_against_its_scores():
    # The arm is better than 300 real images with either seed; draws of the first alone pool 150 and 300.
    points = {150: [0.50, 0.40], 300: [0.48, 0.52], 600: [0.60, 0.62]}
    assert worth(points, [0.495, 0.525], 300, 300).real_images.low > 0


def slow_pools(points):
    """Sizes of each level of a ruler: adjacent ones are pooled until all means rise."""
    pools = []
    for size in sorted(points):
        pools.append(([size], points[size]))
        while len(pools) > 1 and mean(pools[-2][1]) >= mean(pools[-1][1]):
            sizes, scores = pools.pop()
            pools[-1] = (pools[-1][0] + sizes, pools[-1][1] + scores)
    return [sizes for sizes, _ in pools]


BY_SEED = st.lists(
    st.integers(0, 64).map(lambda score: Fraction(score, 64)), min_size=2, max_size=2
)


@given(st.lists(BY_SEED, min_size=4, max_size=4), BY_SEED, st.sampled_from([75, 150, 300, 600]))
def test_what_can_be_said_has_the_sign_of_the_difference_from_real(scores, arm, num_real):
    points = dict(zip([75, 150, 300, 600], scores, strict=True))
    value = worth(points, arm, num_real, 300, num_draws=1).real_images.value
    pools = slow_pools(points)
    assert math.isnan(value) == ([num_real] not in pools)
    if not math.isnan(value):
        assert np.sign(value) == np.sign(float(mean(arm) - mean(points[num_real])))


def test_synthetic_images_alone_are_as_good_as_real_ones():
    found = worth(STEEP, STEEP[200], 0, 300)
    assert found.real_images.value == pytest.approx(200)
    assert found.words == (
        "as good as 200 real images (200 to 200), 1.50 (1.50 to 1.50) synthetic images per real one"
    )


def test_synthetic_images_alone_below_the_ruler_are_worth_some():
    found = worth(STEEP, [0.1] * 3, 0, 300)
    assert found.words == "worth fewer real images than the ruler measures"
    rate = found.exchange_rate
    assert math.isnan(rate.value)
    assert (rate.low, rate.high) == (0, math.inf)


def test_seeds_whose_ruler_falls_open_the_interval():
    found = worth({100: [0.3, 0.5], 200: [0.6, 0.45]}, [0.45, 0.5], 100, 300)
    assert math.isfinite(found.real_images.value)
    assert (found.real_images.low, found.real_images.high) == (-math.inf, math.inf)


def test_one_seed_has_no_limits():
    found = worth({100: [0.3], 200: [0.5]}, [0.4], 100, 300)
    value = pytest.approx(100 * math.sqrt(2) - 100)
    assert found.real_images == Interval(value, -math.inf, math.inf)
    assert found.words.startswith(
        "as good as 41 more real images (-∞ to ∞), 7.2 (0.0 to ∞) synthetic"
    )


@pytest.mark.parametrize(
    ("points", "arm"), [(STEEP, []), (STEEP, [0.5]), (STEEP, [0.5] * 4), ({100: [], 200: []}, [])]
)
def test_other_seeds_are_refused(points, arm):
    with pytest.raises(ValueError, match="needs the same"):
        worth(points, arm, 100, 300)


def test_equal_seeds_give_equal_intervals():
    arm = [0.45, 0.47, 0.40]
    assert worth(STEEP, arm, 100, 300, seed=3) == worth(STEEP, arm, 100, 300, seed=3)
