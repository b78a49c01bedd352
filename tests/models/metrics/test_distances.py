import tracemalloc
from dataclasses import astuple
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from models.metrics import distances
from models.metrics.comparison import student_interval
from models.metrics.distances import (
    Prdc,
    RealSide,
    copy_threshold,
    frechet_distance,
    jackknife_intervals,
    moments,
    nearest_real,
    polynomial_mmd,
    prdc,
)


def jackknife_interval(statistic, count, **more):
    return jackknife_intervals(lambda kept: (statistic(kept),), np.arange(count), **more)[0]


def normal(count, num_features, seed=0, scale=1.0, shift=0.0):
    """Correlated features, none of them like another."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(num_features, num_features))
    return (rng.normal(size=(count, num_features)) @ mixing * scale + shift).astype(np.float32)


def of(features):
    return moments([features])


@pytest.fixture(params=[1 << 22, 7])
def blocks(request, monkeypatch):
    """All pairs in one block, and a row or so at a time."""
    monkeypatch.setattr(distances, "_PAIRS_AT_ONCE", request.param)


@pytest.mark.parametrize("cuts", [[], [1], [0, 40, 40, 99]])
def test_moments_of_batches_are_those_of_the_whole(cuts):
    features = normal(100, 7, shift=3)
    found = moments(np.split(features, cuts))
    whole = features.astype(np.float64)
    assert (found.count, found.num_features) == (100, 7)
    np.testing.assert_allclose(found.mean, whole.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(whole.T), rtol=1e-9, atol=1e-12)
    assert found.covariance.dtype == np.float64


def test_moments_survive_a_mean_far_from_zero():
    features = np.random.default_rng(0).normal(size=(1000, 3))
    near, far = of(features), moments(np.split(features + 1e8, 20))
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-6, atol=1e-7)


def test_moments_need_no_memory_but_for_a_batch():
    def batches():
        rng = np.random.default_rng(0)
        for _ in range(300):
            yield rng.normal(size=(250, 16))

    tracemalloc.start()
    found = moments(batches())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.count == 75_000
    assert peak < 5 * 250 * 16 * 8


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(count):
    with pytest.raises(ValueError, match=f"at least two images, here are {count}"):
        moments([np.zeros((count, 3))])


@pytest.mark.parametrize("constant", [False, True])
def test_frechet_distance_is_torch_fidelitys(constant):
    real, generated = normal(400, 40), normal(250, 40, seed=1, scale=1.3, shift=0.5)
    if constant:  # a unit that never fires, and two that are the same
        for features in (real, generated):
            features[:, 3] = 0
            features[:, 8] = features[:, 20]
    statistics = [
        fid_features_to_statistics(torch.from_numpy(item).double()) for item in (real, generated)
    ]
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    rel = 1e-6 if constant else 1e-10
    assert frechet_distance(of(real), of(generated)) == pytest.approx(expected, rel=rel)
    assert expected > 1


def test_frechet_distance_of_independent_features_is_that_of_their_deviations():
    real, generated = of(normal(50, 1)), of(normal(60, 1, seed=1, scale=3, shift=2))
    deviations = np.sqrt([real.covariance[0, 0], generated.covariance[0, 0]])
    expected = (real.mean[0] - generated.mean[0]) ** 2 + (deviations[0] - deviations[1]) ** 2
    assert frechet_distance(real, generated) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 6), st.floats(-5, 5))
def test_frechet_distance_has_the_properties_of_one(seed, num_features, shift):
    real = normal(30, num_features, seed).astype(np.float64)
    generated = normal(20, num_features, seed + 1, scale=0.7, shift=1).astype(np.float64)
    distance = frechet_distance(of(real), of(generated))
    scale = np.trace(of(real).covariance)
    assert frechet_distance(of(real), of(real)) == pytest.approx(0, abs=1e-6 * scale)
    assert frechet_distance(of(generated), of(real)) == pytest.approx(distance, rel=1e-6)
    rotation = ortho_group.rvs(num_features, random_state=seed)
    turned = frechet_distance(of(real @ rotation), of(generated @ rotation))
    assert turned == pytest.approx(distance, rel=1e-6)
    moved = frechet_distance(of(real), of(real + shift))
    assert moved == pytest.approx(num_features * shift**2, abs=1e-6 * scale)


def test_the_real_side_is_factored_once(monkeypatch):
    calls = []
    factor = distances.lapack.dpstrf
    monkeypatch.setattr(
        distances.lapack, "dpstrf", lambda *args, **kw: calls.append(1) or factor(*args, **kw)
    )
    real = RealSide(of(normal(50, 6)))
    for seed in (1, 2):
        generated = of(normal(50, 6, seed))
        assert real.frechet_distance(generated) == frechet_distance(real.moments, generated)
    assert len(calls) == 1 + 2


def test_the_kernel_distance_is_torch_fidelitys_kid_of_one_subset_of_all(blocks):
    real, generated = normal(40, 5), normal(40, 5, seed=1, scale=1.2)
    theirs = kid_features_to_metric(
        *(torch.from_numpy(item).double() for item in (real, generated)),
        kid_subsets=1,
        kid_subset_size=40,
        verbose=False,
    )
    found = polynomial_mmd(real, generated)
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_the_kernel_distance_of_unequal_sets_is_the_sum_over_pairs(blocks):
    real, generated = normal(8, 3).astype(float), normal(5, 3, seed=1).astype(float)

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    among_real = [kernel(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j]
    among = [
        kernel(x, y) for i, x in enumerate(generated) for j, y in enumerate(generated) if i != j
    ]
    across = [kernel(x, y) for x in real for y in generated]
    expected = np.mean(among_real) + np.mean(among) - 2 * np.mean(across)
    assert polynomial_mmd(real, generated) == pytest.approx(expected, rel=1e-12)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average():
    rng = np.random.default_rng(0)
    values = [polynomial_mmd(*rng.normal(size=(2, 30, 2))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)


def test_a_kernel_distance_needs_two_images():
    with pytest.raises(ValueError, match="needs two images, not 3 and 1"):
        polynomial_mmd(np.zeros((3, 2)), np.zeros((1, 2)))


def slow_prdc(real, generated, k):
    def radius(i, features):
        others = [np.linalg.norm(features[i] - y) for j, y in enumerate(features) if j != i]
        return sorted(others)[k - 1]

    radii = [radius(i, real) for i in range(len(real))]
    generated_radii = [radius(i, generated) for i in range(len(generated))]
    apart = [[np.linalg.norm(x - y) for y in generated] for x in real]
    pairs = [(i, j) for i in range(len(real)) for j in range(len(generated))]
    in_real = [(i, j) for i, j in pairs if apart[i][j] < radii[i]]
    in_generated = [(i, j) for i, j in pairs if apart[i][j] < generated_radii[j]]
    return Prdc(
        precision=len({j for _, j in in_real}) / len(generated),
        recall=len({i for i, _ in in_generated}) / len(real),
        density=len(in_real) / k / len(generated),
        coverage=len({i for i, _ in in_real}) / len(real),
    )


@pytest.mark.parametrize("k", [1, 5])
def test_prdc_counts_neighbourhoods(blocks, k):
    real, generated = normal(40, 3), normal(30, 3, seed=1, scale=0.8, shift=0.5)
    found, expected = prdc(real, generated, num_neighbours=k), slow_prdc(real, generated, k)
    for name in Prdc.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)
        assert 0.02 < getattr(found, name) < 0.98 or name == "density"
    theirs = prc_features_to_metric(
        *map(torch.from_numpy, (generated, real)), prc_neighborhood=k, verbose=False
    )
    assert found.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert found.recall == pytest.approx(theirs["recall"], abs=1e-6)


def test_prdc_of_a_set_to_itself_is_one_and_to_one_far_away_zero():
    real = normal(50, 4).astype(np.float64)
    assert prdc(real, real) == Prdc(1, 1, pytest.approx(1, abs=0.01), 1)
    assert prdc(real, real + 1000) == Prdc(0, 0, 0, 0)


def test_prdc_needs_neighbours():
    with pytest.raises(ValueError, match="5 images have no 5 neighbours"):
        prdc(normal(9, 2), normal(5, 2))


def test_the_nearest_real_image_is_found(blocks):
    real, generated = normal(50, 4), normal(30, 4, seed=1)
    generated[:3] = real[[7, 0, 49]]
    indices, found = nearest_real(real, generated)
    apart = cdist(generated, real)
    assert indices.tolist() == apart.argmin(axis=1).tolist()
    np.testing.assert_allclose(found, apart.min(axis=1), rtol=1e-12, atol=0)
    assert (found[:3] == 0).all()


def test_a_mirror_image_is_a_copy_too(blocks):
    rng = np.random.default_rng(0)
    real, generated, mirrored = (rng.normal(size=(count, 4)) for count in (50, 6, 6))
    mirrored[2] = real[31]
    indices, found = nearest_real(real, generated, mirrored)
    one, other = (nearest_real(real, item) for item in (generated, mirrored))
    assert found.tolist() == np.minimum(one[1], other[1]).tolist()
    assert (indices[2], found[2]) == (31, 0)
    nearer = one[1] <= other[1]
    assert indices[nearer].tolist() == one[0][nearer].tolist()
    assert copy_threshold(real, generated, mirrored, quantile=0) == 0


def test_copies_are_nearer_than_all_but_a_hundredth_of_other_real_images():
    real, other_real, generated = (normal(500, 4, seed) for seed in range(3))
    generated[:50] = real[100:150] + 1e-4
    limit = copy_threshold(real, other_real)
    assert (nearest_real(real, other_real)[1] < limit).mean() == pytest.approx(0.01, abs=0.003)
    is_copy = nearest_real(real, generated)[1] < limit
    assert is_copy[:50].all()
    assert is_copy[50:].mean() < 0.04
    assert copy_threshold(real, other_real, quantile=0.5) > limit


def test_the_jackknife_of_a_mean_by_single_images_is_students_interval():
    values = np.random.default_rng(0).normal(size=20)
    found = jackknife_interval(lambda kept: values[kept].mean(), 20)
    assert astuple(found) == pytest.approx(astuple(student_interval(values.tolist())))
    narrow = jackknife_interval(lambda kept: values[kept].mean(), 20, level=0.5)
    assert astuple(narrow) == pytest.approx(astuple(student_interval(values.tolist(), level=0.5)))


def test_the_jackknife_leaves_out_every_image_once():
    seen = []
    jackknife_interval(lambda kept: seen.append(kept) or 0.0, 23, num_groups=5)
    *without, everything = seen
    assert everything.tolist() == list(range(23))
    left_out = [sorted(set(range(23)) - set(kept.tolist())) for kept in without]
    assert sorted(chain.from_iterable(left_out)) == list(range(23))
    assert sorted(map(len, left_out)) == [4, 4, 5, 5, 5]
    assert all((np.diff(kept) > 0).all() for kept in seen)
    assert all(np.ptp(images) >= len(images) for images in left_out)  # images may be sorted
    assert jackknife_interval(lambda kept: float(len(kept)), 3).value == 3


def test_images_of_one_cluster_are_left_out_together():
    clusters, seen = np.repeat([7, 3, 5, 9], 3), []
    jackknife_intervals(lambda kept: seen.append(kept) or [0.0], clusters, num_groups=20)
    left_out = [set(range(12)) - set(kept.tolist()) for kept in seen[:-1]]
    assert sorted(map(sorted, left_out)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    values = np.random.default_rng(0).normal(size=200)
    repeated, names = np.repeat(values, 5), np.repeat(np.arange(200), 5)
    single, apart, together = (
        jackknife_intervals(lambda kept, v=v: [v[kept].mean()], c)[0]
        for v, c in ((values, np.arange(200)), (repeated, np.arange(1000)), (repeated, names))
    )
    assert together.high - together.low == pytest.approx(single.high - single.low, rel=0.3)
    assert apart.high - apart.low < 0.7 * (single.high - single.low)


def test_several_numbers_have_each_its_interval():
    values = np.random.default_rng(0).normal(size=60)
    statistics = (np.mean, np.var)
    together = jackknife_intervals(
        lambda kept: [f(values[kept]) for f in statistics], np.arange(60)
    )
    for found, f in zip(together, statistics, strict=True):
        alone = jackknife_interval(lambda kept, f=f: f(values[kept]), 60)
        assert astuple(found) == pytest.approx(astuple(alone))


def test_a_jackknife_needs_two_images():
    with pytest.raises(ValueError, match="at least two images, here are 1"):
        jackknife_interval(lambda kept: 0.0, 1)


@pytest.mark.parametrize("name", ["frechet", "kernel", "coverage"])
def test_jackknife_intervals_hold_what_they_promise(name):
    """Of samples of the same distribution about 95 of 100 intervals hold the mean of the samples' values."""
    real = RealSide(of(normal(150, 2)))
    points = normal(150, 2)
    measure = {
        "frechet": lambda features: real.frechet_distance(of(features)),
        "kernel": lambda features: polynomial_mmd(points, features),
        "coverage": lambda features: prdc(points, features).coverage,
    }[name]
    intervals = []
    for seed in range(40):
        sample = normal(150, 2, seed + 1, scale=1.4, shift=0.5)
        intervals.append(jackknife_interval(lambda kept, s=sample: measure(s[kept]), 150))
    truth = np.mean([item.value for item in intervals])
    share = np.mean([item.low <= truth <= item.high for item in intervals])
    widths = [item.high - item.low for item in intervals]
    spread = np.std([item.value for item in intervals])
    assert 0.88 <= share <= 1
    assert 2.5 < np.mean(widths) / spread < 7
