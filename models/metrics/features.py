"""Feature extractors for the Fréchet distance, and the distance itself, through torchmetrics."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from data.progress import Progress, silent
from data.vocabulary.images import read_square
from models.detector.detector import Detector
from models.devices import default_device

FEATURES_NAME = "features.parquet"
"""Table of image ids and their features in an artifact."""

_BATCH = 64
_INCEPTION_FEATURES = 2048


class Extractor(Protocol):
    """Maps images to features."""

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (batch, 3, height, width) to features (batch, num_features)."""


class DetectorFeatures:
    """Global average of a detector backbone's deepest feature map."""

    def __init__(self, detector: Detector):
        self._detector = detector

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (batch, 3, height, width) to features (batch, num_features)."""
        return self._detector.backbone_features(images)


class InceptionFeatures:
    """Pool features of the InceptionV3 that the FID is defined by.

    Args:
        weights: file, where nothing may be downloaded.
    """

    def __init__(self, weights: Path | None = None):
        self._network = _metric(_INCEPTION_FEATURES, weights).inception.to(default_device())

    def __call__(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (batch, 3, height, width) to features (batch, 2048)."""
        return self._network(images)


class _Given(nn.Module):
    """Stands where torchmetrics wants an extractor, and is given features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _metric(feature: nn.Module | int, weights: Path | None = None) -> FrechetInceptionDistance:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `FrechetInceptionDistance` will save")
        return FrechetInceptionDistance(
            feature=feature,
            feature_extractor_weights_path=str(weights) if weights else None,
        )


@torch.no_grad()
def image_features(
    extractor: Extractor,
    paths: Sequence[Path],
    resolution: int,
    on_progress: Progress = silent,
) -> Float[np.ndarray, "images features"]:
    """Features of image files, float32.

    Args:
        resolution: images are squashed to this square, pixels.
    """
    parts = []
    for start in range(0, len(paths), _BATCH):
        images = [read_square(path, resolution) for path in paths[start : start + _BATCH]]
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(default_device())
        parts.append(extractor(batch).float().cpu().numpy())
        on_progress(start + len(images), len(paths), "images")
    return np.concatenate(parts)


def frechet_distance(
    real: Float[np.ndarray, "images features"], fake: Float[np.ndarray, "others features"]
) -> float:
    """Fréchet distance of two sets of features, each taken for a normal distribution."""
    metric = _metric(_Given(real.shape[1]))
    for features, is_real in ((real, True), (fake, False)):
        for start in range(0, len(features), _BATCH):
            metric.update(torch.from_numpy(features[start : start + _BATCH]), real=is_real)
    return float(metric.compute())
