import numpy as np
import pytest
from scipy.linalg import sqrtm

from models.metrics.features import frechet_distance, image_features


def reference(real, fake):
    """|μ - ν|² + Tr(Σ + Γ - 2 (ΣΓ)^½)."""
    cov, other = np.cov(real.T), np.cov(fake.T)
    root = sqrtm(cov @ other).real
    mean = real.mean(axis=0) - fake.mean(axis=0)
    return mean @ mean + np.trace(cov + other - 2 * root)


def test_the_distance_follows_its_formula():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, 6)).astype(np.float32)
    fake = (rng.normal(size=(150, 6)) * 1.5 + 0.4).astype(np.float32)
    assert frechet_distance(real, fake) == pytest.approx(reference(real, fake), rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(real, fake[::-1].copy()) == pytest.approx(frechet_distance(real, fake))


def test_features_are_those_of_every_image_in_order(dataset):
    paths = [path for _, path in dataset.image_paths("train")] * 6
    reports = []
    features = image_features(
        lambda images: images.double().mean(dim=(2, 3)),
        paths,
        32,
        lambda *report: reports.append(report),
    )
    assert features.shape == (72, 3)
    assert features.dtype == np.float32
    assert np.array_equal(features[:12], features[12:24])
    assert len(np.unique(features[:12], axis=0)) == 12
    assert reports[-1] == (72, 72, "images")
