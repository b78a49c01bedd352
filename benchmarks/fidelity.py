"""Fréchet distance from moments of Inception's size, against torch-fidelity's and a matrix root.

`python benchmarks/fidelity.py [--scale 0.25]`: 1 is 2,048 features of COCO's validation images. All get
the moments; with the real side cached its covariance is factored, as it is from the second set on.
torch-fidelity 0.4 takes the eigenvalues of the asymmetric product of the covariances; before it took
SciPy's root of that product, as other programs do.
"""

import sys
from collections.abc import Callable

import numpy as np
from scipy.linalg import sqrtm
from timing import best_seconds, scale_option, verdict
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from models.metrics.distances import Moments, RealSide, frechet_distance, moments

GOAL = 2.5
TOLERANCE = 1e-4
NUM_IMAGES, NUM_FEATURES = 5_000, 2_048


def inception_like(rng: np.random.Generator, num_images: int, num_features: int) -> Moments:
    """Moments of correlated features, none below 0, of variances that fall off."""
    mixing = rng.normal(size=(num_features, num_features)) / np.arange(1, num_features + 1)
    features = rng.normal(size=(num_images, num_features)) @ mixing.T
    return moments([np.maximum(0.3 * features + 0.2, 0).astype(np.float32)])


def by_torch_fidelity(real: Moments, generated: Moments) -> float:
    """The distance as torch-fidelity's FID has it."""
    statistics = [{"mu": item.mean, "sigma": item.covariance} for item in (real, generated)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def by_root(real: Moments, generated: Moments) -> float:
    """The distance by its formula."""
    shift = real.mean - generated.mean
    root = sqrtm(real.covariance @ generated.covariance).real
    return float(shift @ shift + np.trace(real.covariance + generated.covariance - 2 * root))


def main() -> int:
    """Check equality, then time."""
    scale = scale_option(__doc__)
    sizes = int(NUM_IMAGES * scale), int(NUM_FEATURES * scale)
    rng = np.random.default_rng(0)
    real, generated = inception_like(rng, *sizes), inception_like(rng, *sizes)
    print(f"{sizes[0]} images of {sizes[1]} features on either side")
    cached = RealSide(real)
    contestants: dict[str, Callable[[], float]] = {
        "detdiffusion": lambda: frechet_distance(real, generated),
        "with the real side cached": lambda: cached.frechet_distance(generated),
        "torch-fidelity": lambda: by_torch_fidelity(real, generated),
        "scipy.linalg.sqrtm": lambda: by_root(real, generated),
    }
    values = {name: run() for name, run in contestants.items()}
    print("  ".join(f"{name} {value:.6f}" for name, value in values.items()))
    expected = values["torch-fidelity"]
    largest = max(abs(value / expected - 1) for value in values.values())
    if not largest <= TOLERANCE:
        print(f"FAIL fidelity: the distances differ by {largest:g} of torch-fidelity's")
        return 1
    seconds = best_seconds(contestants, rounds=1)
    theirs, mine = seconds["torch-fidelity"], seconds["with the real side cached"]
    ratios = {
        "torch-fidelity, real side cached": (theirs / mine, GOAL),
        "scipy.linalg.sqrtm": (seconds["scipy.linalg.sqrtm"] / seconds["detdiffusion"], GOAL),
    }
    print(f"{theirs / seconds['detdiffusion']:.1f}x torch-fidelity with nothing cached")
    equality = f"distances equal to {TOLERANCE:g} (largest difference {largest:.1e})"
    return verdict("fidelity", ratios, equality)


if __name__ == "__main__":
    sys.exit(main())
