"""Training images whose random changes do not depend on how many processes load them.

MMEngine seeds each loading process by its number. Here the sampler says with every image at which place of
the training it stands, and the data set draws its random numbers from the seed and that place.
"""

from collections.abc import Iterator, Sized
from itertools import count, islice
from typing import Any

import numpy as np
from mmengine.dataset import ConcatDataset, InfiniteSampler

from models.detector.mmdetection import DATA_SAMPLERS, DATASETS


@DATA_SAMPLERS.register_module()
class PlaceSampler(InfiniteSampler):  # type: ignore[misc]  # mmengine is untyped
    """MMEngine's endless sampler, with place * size of the data set + index in place of the index.

    Processes that share a batch take its places in turn.

    Args:
        start: place to begin at.
        added_share: share of the places at which an image stands that is not of the first of the data sets
            in a row; both sides have an endless order of their own. None: all are shuffled as one.
        num_mixed: places from which on there are images of the first alone, where there is a share.
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        start: int = 0,
        added_share: float | None = None,
        num_mixed: int = 0,
        **options: Any,
    ):
        super().__init__(dataset, **options)
        self._start, self._added_share, self._num_mixed = start, added_share, num_mixed

    def __iter__(self) -> Iterator[int]:
        indices = (
            self._infinite_indices()
            if self._added_share is None
            else self._by_source(self._added_share)
        )
        places = islice(enumerate(indices), self._start + self.rank, None, self.world_size)
        for place, index in places:
            yield place * self.size + index

    def _by_source(self, share: float) -> Iterator[int]:
        """Up to any place the share is exact to half an image, whatever the batch."""
        num_first = self.dataset.cumulative_sizes[0]
        first = _endless(num_first, self.shuffle, self.seed)
        # Of another seed: sets of one size would go side by side, and a layout's picture by its original.
        added = _endless(self.size - num_first, self.shuffle, self.seed + 1)
        for place in count():
            before, after = (round(share * min(n, self._num_mixed)) for n in (place, place + 1))
            yield num_first + next(added) if after > before else next(first)


@DATASETS.register_module()
class SeededConcatDataset(ConcatDataset):  # type: ignore[misc]  # likewise
    """Data sets in a row, read by `PlaceSampler`."""

    def __init__(self, datasets: list[Any], seed: int):
        super().__init__(datasets)
        self._seed = seed

    def __getitem__(self, code: int) -> Any:
        place, index = divmod(code, len(self))
        state = np.random.get_state()  # noqa: NPY002  # MMDetection's transforms use the global one
        # 0 where MMEngine has the process: an image is the same in each.
        np.random.seed(random_state(self._seed, 0, place))  # noqa: NPY002  # likewise
        try:
            return super().__getitem__(index)
        finally:
            np.random.set_state(state)  # noqa: NPY002  # likewise


def _endless(count: int, shuffle: bool, seed: int) -> Iterator[int]:  # noqa: FBT001  # MMEngine's
    return InfiniteSampler(range(count), shuffle, seed)._infinite_indices()  # noqa: SLF001  # of all processes


def random_state(*numbers: int) -> np.ndarray:
    """What a generator is seeded with by some numbers; uint32 (4,)."""
    return np.random.SeedSequence(numbers).generate_state(4)
