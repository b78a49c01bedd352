"""Training images whose random changes do not depend on how many processes load them.

MMEngine seeds each loading process by its number. Here the sampler says with every image at which place of
the training it stands, and the data set draws its random numbers from the seed and that place.
"""

from collections.abc import Iterator, Sized
from itertools import islice
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import ConcatDataset, InfiniteSampler
from mmengine.dist import get_rank

from models.detector.mmdetection import DATA_SAMPLERS, DATASETS, TRANSFORMS


@DATA_SAMPLERS.register_module()
class PlaceSampler(InfiniteSampler):  # type: ignore[misc]  # mmengine is untyped
    """MMEngine's endless sampler, with place * size of the data set + index in place of the index.

    Args:
        start: place to begin at.
    """

    def __init__(self, dataset: Sized, *, start: int = 0, **options: Any):
        super().__init__(dataset, **options)
        self._start = start

    def __iter__(self) -> Iterator[int]:
        for place, index in islice(enumerate(super().__iter__()), self._start, None):
            yield place * self.size + index


@DATASETS.register_module()
class SeededConcatDataset(ConcatDataset):  # type: ignore[misc]  # likewise
    """Data sets in a row, read by `PlaceSampler`."""

    def __init__(self, datasets: list[Any], seed: int):
        super().__init__(datasets)
        self._seed = seed

    def __getitem__(self, code: int) -> Any:
        place, index = divmod(code, len(self))
        state = np.random.get_state()  # noqa: NPY002  # MMDetection's transforms use the global one
        np.random.seed(_state(self._seed, get_rank(), place))  # noqa: NPY002  # likewise
        try:
            return super().__getitem__(index)
        finally:
            np.random.set_state(state)  # noqa: NPY002  # likewise


@TRANSFORMS.register_module()
class DropMasks(BaseTransform):  # type: ignore[misc]  # mmcv is untyped
    """Leaves out masks that were needed to paste objects: some detectors of boxes do else with them."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return what a sample holds less its masks."""
        return {name: value for name, value in results.items() if name != "gt_masks"}


def _state(*numbers: int) -> np.ndarray:
    return np.random.SeedSequence(numbers).generate_state(4)
