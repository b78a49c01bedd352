"""A growing set of ids in a few bytes each."""

import numpy as np

_LONGEST_RUN = 1 << 18
"""Ids; merging longer runs would take memory for their copies."""


class IdSet:
    """Ids seen so far, as sorted runs of int64.

    >>> seen = IdSet()
    >>> seen.add(np.array([3, 1, 3])).tolist(), seen.add(np.array([1, 2])).tolist()
    ([True, True, False], [False, True])
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Add int64 ids (n,); returns which of them are new, each once, bool (n,)."""
        unique, first = np.unique(ids, return_index=True)
        known = np.zeros(len(unique), bool)
        for run in self._runs:
            if not len(unique) or run[0] > unique[-1] or run[-1] < unique[0]:
                continue
            rows = np.searchsorted(run, unique).clip(max=len(run) - 1)
            known |= run[rows] == unique
        is_new = np.zeros(len(ids), bool)
        is_new[first[~known]] = True
        self._append(unique[~known])
        return is_new

    def _append(self, ids: np.ndarray) -> None:
        if not len(ids):
            return
        self._runs.append(ids)
        while len(self._runs) > 1 and self._is_worth_merging(*map(len, self._runs[-2:])):
            merged = np.concatenate([self._runs[-2], self._runs[-1]])
            self._runs[-2:] = [np.sort(merged, kind="stable")]

    @staticmethod
    def _is_worth_merging(long: int, short: int) -> bool:
        return long < 2 * short and long + short <= _LONGEST_RUN
