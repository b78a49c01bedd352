"""Feature extractors for the Fréchet distance, and the distance itself through torchmetrics."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from data.images import read_square
from models.detector import Detector
from models.devices import default_device

_BATCH = 64


class DetectorFeatures(nn.Module):
    """Global average of a detector backbone's deepest feature map, for uint8 RGB images."""

    def __init__(self, detector: Detector, resolution: int):
        super().__init__()
        self._detector = detector
        blank = torch.zeros(1, 3, resolution, resolution, dtype=torch.uint8)
        self.num_features = self.forward(blank).shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 RGB (batch, 3, height, width) to features (batch, num_features)."""
        return self._detector.backbone_features(images)


def frechet_distances(
    extractor: nn.Module | int,
    real: Sequence[Path],
    candidates: Mapping[str, Sequence[Path]],
    resolution: int,
    inception_weights: Path | None = None,
) -> dict[str, float]:
    """Fréchet distance of each candidate set of image files to the real one.

    Args:
        extractor: module with `num_features`, or 2048 for InceptionV3's pool features.
        resolution: images are squashed to this square, pixels.
        inception_weights: file for InceptionV3 where nothing may be downloaded.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `FrechetInceptionDistance` will save")
        metric = FrechetInceptionDistance(
            feature=extractor,
            reset_real_features=False,
            feature_extractor_weights_path=str(inception_weights) if inception_weights else None,
        ).to(default_device())
    for batch in _batches(real, resolution):
        metric.update(batch, real=True)
    distances = {}
    for name, paths in candidates.items():
        metric.reset()
        for batch in _batches(paths, resolution):
            metric.update(batch, real=False)
        distances[name] = float(metric.compute())
    return distances


def _batches(paths: Sequence[Path], resolution: int) -> Iterable[Tensor]:
    for start in range(0, len(paths), _BATCH):
        images = [read_square(path, resolution) for path in paths[start : start + _BATCH]]
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(default_device())
