"""How far generated images are from real ones, both given as features of an extractor."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.linalg import eigvalsh, lapack
from scipy.special import stdtrit

from models.metrics.interval import LEVEL, Interval

_PAIRS_AT_ONCE = 1 << 22
"""So many pairs of images are compared at once: 32 MiB of numbers."""

Features = Float[np.ndarray, "images features"]
OtherFeatures = Float[np.ndarray, "others features"]


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and covariance of the features of a set of images.

    Attributes:
        count: number of images, at least 2.
        mean: float64 (features,).
        covariance: unbiased, float64 (features, features).
    """

    count: int
    mean: Float64[np.ndarray, " features"]
    covariance: Float64[np.ndarray, "features features"]

    @property
    def num_features(self) -> int:
        """Numbers per image."""
        return len(self.mean)


def moments(batches: Iterable[Float[np.ndarray, "batch features"]]) -> Moments:
    """Moments of all batches together, in memory for one of them.

    Sums of squares about the mean are merged by the pairwise formula of Chan, Golub and LeVeque
    (1979), which loses no digits where the mean is large against the deviations.

    Raises:
        ValueError: there are fewer than two images.

    >>> moments([np.array([[1.0], [3.0]]), np.array([[5.0]])]).covariance
    array([[4.]])
    """
    count, mean, scatter = 0, np.zeros(1), np.zeros((1, 1))
    for batch in batches:
        if len(batch) == 0:
            continue
        values = batch.astype(np.float64)
        batch_mean = values.mean(axis=0)
        values -= batch_mean
        shift = batch_mean - mean
        total = count + len(values)
        scatter = scatter + values.T @ values
        scatter += np.outer(shift, shift) * (count * len(values) / total)
        mean = mean + shift * (len(values) / total)
        count = total
    if count < 2:
        raise ValueError(f"a covariance needs at least two images, here are {count}")
    return Moments(count, mean, scatter / (count - 1))


def frechet_defined(count: int, num_features: int) -> bool:
    """Whether a set has images enough for a Fréchet distance.

    The covariance of as many images as features, or of fewer, is singular: the distance then says more
    about the number of images than about the images.

    >>> frechet_defined(2048, 2048), frechet_defined(2049, 2048)
    (False, True)
    """
    return count > num_features


@dataclass(frozen=True, eq=False)
class RealSide:
    """Real images as one side of many Fréchet distances, whose covariance is factored once.

    Attributes:
        moments: of the real images.
    """

    moments: Moments

    @cached_property
    def _factor(
        self,
    ) -> tuple[Int[np.ndarray, " features"], Float64[np.ndarray, "features features"]]:
        """An order of the features, and lower triangular L with L Lᵀ = C in that order.

        Cholesky with pivots (LINPACK; Higham 1990), for a feature may be constant.
        """
        factor, pivots, rank, _ = lapack.dpstrf(self.moments.covariance.T, lower=1)
        factor = np.tril(factor)
        factor[:, rank:] = 0
        return pivots - 1, np.asfortranarray(factor)

    def frechet_distance(self, generated: Moments) -> float:
        """Squared Fréchet distance of generated images; see the function of this name."""
        order, factor = self._factor
        covariance = generated.covariance[np.ix_(order, order)]
        product, _ = lapack.dsygst(covariance.T, factor, itype=2, lower=1)  # Lᵀ C L
        eigenvalues = eigvalsh(product, lower=True, overwrite_a=True)
        trace_root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
        shift = self.moments.mean - generated.mean
        traces = np.trace(self.moments.covariance) + np.trace(generated.covariance)
        return max(float(shift @ shift + traces - 2 * trace_root), 0.0)


def frechet_distance(real: Moments, generated: Moments) -> float:
    """Squared Fréchet distance of two normal distributions, |m₁-m₂|² + tr(C₁ + C₂ - 2(C₁C₂)^½).

    Dowson and Landau (1982); with Inception's features the FID of Heusel et al. (2017), eq. 6. C₁C₂ is
    LLᵀC₂ and has the eigenvalues of the symmetric LᵀC₂L, so that no root of an asymmetric matrix has
    to be found.

    >>> one, other = moments([np.array([[1.0], [3.0]])]), moments([np.array([[0.0], [4.0]])])
    >>> round(frechet_distance(one, other), 9)
    2.0
    """
    return RealSide(real).frechet_distance(generated)


def polynomial_mmd(real: Features, generated: OtherFeatures) -> float:
    """Squared maximum mean discrepancy, unbiased, under the kernel (x·y/d + 1)³.

    Gretton et al. (2012), eq. 3, with the kernel of Bińkowski et al. (2018). All pairs of images
    count, whence nothing is drawn: this is the one for `jackknife_interval`.

    Raises:
        ValueError: a set has fewer than two images.
    """
    num_real, num_generated = len(real), len(generated)
    if min(num_real, num_generated) < 2:
        raise ValueError(f"a kernel distance needs two images, not {num_real} and {num_generated}")
    real, generated = real.astype(np.float64), generated.astype(np.float64)
    among_real = _kernel_sum(real, real) - _kernel_diagonal(real)
    among_generated = _kernel_sum(generated, generated) - _kernel_diagonal(generated)
    return float(
        among_real / (num_real * (num_real - 1))
        + among_generated / (num_generated * (num_generated - 1))
        - 2 * _kernel_sum(real, generated) / (num_real * num_generated)
    )


def _kernel_sum(first: Features, second: OtherFeatures) -> float:
    total = 0.0
    for rows in _blocks(len(first), len(second)):
        base = first[rows] @ second.T / first.shape[1] + 1
        total += float((base * base * base).sum())
    return total


def _kernel_diagonal(features: Features) -> float:
    """Sum of every image's kernel with itself."""
    return float((((features**2).sum(axis=1) / features.shape[1] + 1) ** 3).sum())


@dataclass(frozen=True, slots=True)
class Prdc:
    """Fidelity and diversity of generated images, by neighbourhoods of the images.

    A ball is an image's neighbourhood, as far as its k-th neighbour within its own set.

    Attributes:
        precision: share of the generated images that lie in a real image's ball.
        recall: share of the real images that lie in a generated image's ball.
        density: real images' balls that a generated image lies in, over k; about 1 for equal sets.
        coverage: share of the real images' balls with a generated image inside.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(
    real: Features,
    generated: OtherFeatures,
    *,
    num_neighbours: int = 5,
) -> Prdc:
    """Precision and recall of Kynkäänniemi et al. (2019), density and coverage of Naeem et al. (2020).

    They depend on the numbers of images: compare sets of equal sizes. Balls are open, as in the program
    of Naeem et al., which makes the density of a set against itself exactly 1.

    Args:
        num_neighbours: k.

    Raises:
        ValueError: a set has no more than k images.
    """
    real_radii, generated_radii = (_radii(item, num_neighbours) for item in (real, generated))
    num_balls = np.zeros(len(generated), np.int64)
    nearest = np.full(len(real), np.inf)
    recalled = np.zeros(len(real), bool)
    for rows, distances in _distances(generated, real):
        num_balls[rows] = (distances < real_radii).sum(axis=1)
        recalled |= (distances < generated_radii[rows, None]).any(axis=0)
        nearest = np.minimum(nearest, distances.min(axis=0))
    return Prdc(
        precision=float((num_balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(num_balls.mean() / num_neighbours),
        coverage=float((nearest < real_radii).mean()),
    )


def _radii(features: Features, num_neighbours: int) -> Float64[np.ndarray, " images"]:
    """Distance of every image's k-th neighbour, the image itself not counted."""
    if len(features) <= num_neighbours:
        raise ValueError(f"{len(features)} images have no {num_neighbours} neighbours each")
    radii = np.zeros(len(features))
    for rows, distances in _distances(features, features):
        own = np.arange(rows.start, rows.stop)
        distances[own - rows.start, own] = np.inf
        radii[rows] = np.partition(distances, num_neighbours - 1, axis=1)[:, num_neighbours - 1]
    return radii


def nearest_real(
    real: Features, generated: OtherFeatures, mirrored: OtherFeatures | None = None
) -> tuple[Int[np.ndarray, " others"], Float64[np.ndarray, " others"]]:
    """Find the nearest real image of every generated one.

    Args:
        mirrored: features of the generated images seen in a mirror, of which the nearer counts.

    Returns:
        Places among the real images, and Euclidean distances of the features.

    >>> nearest_real(np.array([[0.0], [5.0]]), np.array([[4.0]]))
    (array([1]), array([1.]))
    """
    indices = np.zeros(len(generated), np.int64)
    for rows, distances in _distances(generated, real):
        indices[rows] = distances.argmin(axis=1)
    offsets = generated.astype(np.float64) - real[indices]
    distances = np.linalg.norm(offsets, axis=1)
    if mirrored is None:
        return indices, distances
    others, beside = nearest_real(real, mirrored)
    return np.where(beside < distances, others, indices), np.minimum(beside, distances)


def copy_threshold(
    real: Features,
    other_real: OtherFeatures,
    mirrored: OtherFeatures | None = None,
    *,
    quantile: float = 0.01,
) -> float:
    """Distance to the nearest of `real` up to which an image is suspected to be a copy.

    All but this share of other real images, which cannot be copies, are farther from it.

    Args:
        real: the images that a generator was trained on.
        other_real: images that it was not trained on, such as those of the validation split.
        mirrored: these seen in a mirror, if generated images are looked at so.
    """
    return float(np.quantile(nearest_real(real, other_real, mirrored)[1], quantile))


def _distances(
    features: Features, others: OtherFeatures
) -> Iterator[tuple[slice, Float64[np.ndarray, "rows others"]]]:
    """Euclidean distances of every image to all others, some rows at a time."""
    centre = others.mean(axis=0, dtype=np.float64)  # fewer digits cancel about it
    others = others - centre
    norms = (others**2).sum(axis=1)
    for rows in _blocks(len(features), len(others)):
        part = features[rows] - centre
        squared = (part**2).sum(axis=1)[:, None] + norms - 2 * (part @ others.T)
        yield rows, np.sqrt(np.maximum(squared, 0))


def _blocks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices of rows, each with at most `_PAIRS_AT_ONCE` pairs or a single row."""
    step = max(_PAIRS_AT_ONCE // num_columns, 1)
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def jackknife_intervals(
    statistic: Callable[[Int[np.ndarray, " kept"]], Sequence[float]],
    clusters: Int[np.ndarray, " images"],
    *,
    num_groups: int = 20,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Interval, ...]:
    """Intervals of numbers of a set of images, by the jackknife that leaves out a group at a time.

    Shao and Wu (1989): the variance is (g-1)/g Σ(θᵢ - θ̄)² over g groups drawn at random, images of one
    cluster, such as those of one layout, together. It suits numbers that are not smooth too, such as those
    of nearest neighbours, where leaving out single images fails. Student's t with g-1 degrees of freedom
    makes the interval of it. The set is taken for a random sample; what the statistic compares it to is
    taken as it is.

    Args:
        statistic: the numbers of the images at these places, in ascending order.
        clusters: of each image.
        num_groups: g; at most the number of clusters.

    Raises:
        ValueError: there are fewer than two clusters.

    >>> values = np.array([1.0, 2.0, 3.0, 6.0])
    >>> jackknife_intervals(lambda kept: [values[kept].mean()], np.arange(4))[0].value
    3.0
    """
    names, of_image = np.unique(clusters, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"a jackknife needs at least two images, here are {len(names)}")
    everything = np.arange(len(clusters))
    order = np.random.default_rng(seed).permutation(len(names))
    parts = np.array_split(order, min(num_groups, len(names)))
    groups = [np.flatnonzero(np.isin(of_image, part)) for part in parts]
    replicates = np.array([statistic(np.setdiff1d(everything, group)) for group in groups])
    shrinkage = (len(groups) - 1) / len(groups)
    errors = np.sqrt(shrinkage * ((replicates - replicates.mean(axis=0)) ** 2).sum(axis=0))
    reaches = stdtrit(len(groups) - 1, (1 + level) / 2) * errors
    return tuple(
        Interval(float(value), float(value - reach), float(value + reach))
        for value, reach in zip(statistic(everything), reaches, strict=True)
    )
