import math

import pytest

from models.metrics.arms import ArmResult, arm_worth, compare
from models.metrics.interval import Interval


def result(arm, seed, score, **changes):
    values = {
        "detector": "main", "arm": arm, "seed": seed, "num_real": 600, "num_synthetic": 0,
        "num_pseudo_labelled": 0, "iterations": 1500, "passes": 20.0, "added_passes": None,
        "augmentation": "flip",
        "metrics": {"map": score, "map50": score + 0.2, "map_large": None},
    }  # fmt: skip
    return ArmResult(**(values | changes))


def arm(name, scores, **changes):
    return [result(name, seed, score, **changes) for seed, score in enumerate(scores)]


def no_bootstrap(of, versus):
    raise AssertionError("there are seeds")


def test_gains_are_paired_by_seed_and_judged_as_one_family():
    results = [
        *arm("real", [0.50, 0.40, 0.45]),
        *arm("real+hard", [0.53, 0.43, 0.481]),
        *arm("real+easy", [0.47, 0.369, 0.42]),
        *arm("real+origin", [0.51, 0.39, 0.46]),
    ]
    pairs = [(name, "real") for name in ("real+hard", "real+easy", "real+origin")]
    found = compare(results, pairs, no_bootstrap)
    asked = [item for item in found if item.verdict]
    assert [item.verdict for item in asked] == ["helps", "costs", "cannot tell"]
    assert asked[0].gain.value == pytest.approx(0.0303, abs=1e-4)
    assert asked[0].gain.high - asked[0].gain.low < 0.005  # the seeds themselves differ by 0.1
    assert all(item.adjusted_p >= item.p_value for item in asked)
    assert asked[2].seeds_needed > 20
    beside = [item for item in found if not item.verdict]
    assert {item.metric for item in beside} == {"map50"}  # no object is large
    unasked = compare(results, pairs[:1], no_bootstrap)
    gains = {item.of: item.verdict for item in unasked if item.metric == "map"}
    assert gains == {"real+hard": "helps", "real+easy": None, "real+origin": None}
    beside = {item.of for item in unasked if item.metric == "map50"}
    assert beside == {"real+hard", "real+easy", "real+origin"}
    assert all(item.over == "seeds" for item in found)


def test_seeds_that_one_arm_lacks_are_left_out_and_an_arm_without_any_too():
    results = [
        *arm("real", [0.5, 0.4, 0.3]),
        result("real+hard", 1, 0.45),
        result("real+hard", 7, 0.9),
    ]
    pairs = [("real+hard", "real"), ("real+easy", "real")]
    found = compare(results, pairs, lambda of, versus: (Interval(0.05, 0.01, 0.09), 0.02))
    assert [(item.of, item.metric, item.seeds) for item in found] == [
        ("real+hard", "map", (1,)), ("real+hard", "map50", (1,)),
    ]  # fmt: skip


def test_one_seed_has_an_interval_over_images_and_says_so():
    given = []

    def bootstrap(of, versus):
        given.append((of.arm, versus.arm))
        return Interval(0.05, 0.01, 0.09), 0.02

    results = [result("real", 0, 0.5), result("real+hard", 0, 0.55)]
    found = compare(results, [("real+hard", "real")], bootstrap)
    assert given == [("real+hard", "real")]
    assert (found[0].gain, found[0].over) == (Interval(0.05, 0.01, 0.09), "images")
    assert (found[0].verdict, found[0].seeds_needed) == ("helps", None)
    assert found[0].adjusted_p == 0.02
    assert (found[1].over, found[1].gain.high) == ("nothing", math.inf)


RULER = [
    *arm("real", [0.555, 0.575]),
    *arm("real x 2", [0.582, 0.599], num_real=1200),
    *arm("real x 5.83", [0.603, 0.620], num_real=3500),
]


def test_an_arm_is_worth_what_the_ruler_of_real_images_says():
    mixed = arm("real+hard", [0.57, 0.585], num_synthetic=512)
    found = arm_worth([*RULER, *mixed], "real+hard")
    assert 100 < found.real_images.value < 500
    assert found.exchange_rate.value == pytest.approx(512 / found.real_images.value)
    nothing = arm_worth([*RULER, *arm("real+hard", [0.555, 0.562], num_synthetic=512)], "real+hard")
    assert nothing.real_images.value == -math.inf
    assert nothing.exchange_rate.value == math.inf
    alone = arm("synthetic-only", [0.555, 0.575], num_real=0, num_synthetic=512, passes=None)
    found = arm_worth([*RULER, *alone], "synthetic-only")
    assert found.words.startswith("as good as 600 real images (600 to 600), 0.853 (")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_synthetic": 5},
        {"num_pseudo_labelled": 5},
        {"augmentation": "copy-paste"},
        {"iterations": 3000},
        {"added_passes": 30.0},
    ],
)
def test_the_ruler_is_of_real_images_trained_alike(changes):
    other = arm("other", [0.9, 0.9], num_real=300, **changes)
    mixed = arm("real+hard", [0.57, 0.585], num_synthetic=512)
    assert arm_worth([*RULER, *other, *mixed], "real+hard") == arm_worth(
        [*RULER, *mixed], "real+hard"
    )


def test_without_two_sizes_or_with_a_missing_seed_there_is_no_worth():
    mixed = arm("real+hard", [0.57, 0.585], num_synthetic=512)
    assert arm_worth([*RULER[:2], *mixed], "real+hard") is None
    assert arm_worth([*RULER[1:], *mixed], "real+hard") is None
    other_seeds = [result("real+hard", seed, 0.57, num_synthetic=512) for seed in (1, 2)]
    assert arm_worth([*RULER, *other_seeds], "real+hard") is None
    assert arm_worth(RULER, "real+hard") is None


@pytest.mark.parametrize("iterations", [750, 3000])
def test_an_arm_that_was_trained_for_another_length_has_no_worth(iterations):
    longer = arm("real-repeated", [0.6, 0.61], iterations=iterations)
    assert arm_worth([*RULER, *longer], "real-repeated") is None


def test_the_rulers_own_arms_have_no_worth():
    for name in {item.arm for item in RULER}:
        assert arm_worth(RULER, name) is None
