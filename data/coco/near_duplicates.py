"""Images that are nearly the same, such as frames of a film, and what in their names says so."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.coco.splitting import group_of, held_out
from data.vocabulary.images import difference_hash
from data.workers import Workers

KEYS = ("^(.*?)[0-9]+[^0-9/]*[.][^./]+$", "^(.*)/")
"""What may tell: a name up to its last number, a folder. Shown as they are typed."""

MOST_LOOKED_AT = 1000
"""Images of a data set; on one core 1 ms each as JPEG of 640 × 480 pixels, 40 ms as JPEG of 12 megapixels and
half a second as PNG of these."""

_MOST_BITS = 10
"""Of 64, that two hashes differ by. Images that follow each other by name differ by 17 at least in 160
photographs of COCO, and by 19 in 364 micrographs, but for two of one place (4). Views of these photographs
that move by 2% of their width differ by no more than 10 in 95 of 100, by 3% in 62, by 5% in 16."""

_CLEAR_SHARE = 0.05
"""Of the images, that are nearly the same as another: fewer make no difference to a split."""

_EXPLAINED = 0.9
"""Of the pairs that are alike, that a key must keep together."""

_FILM = 0.5
"""Of the pairs that a key keeps together, that must be alike: else it keeps together much that is not."""


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """What was found.

    Attributes:
        num_images: looked at.
        pairs: names of images that are nearly the same.
        group_by: the expression, for `group_of`, that keeps them together; None: none of `KEYS` does.
    """

    num_images: int
    pairs: Sequence[tuple[str, str]]
    group_by: str | None

    @property
    def num_alike(self) -> int:
        """Images that are nearly the same as another."""
        return len({name for pair in self.pairs for name in pair})

    @property
    def is_clear(self) -> bool:
        """Whether they are so many that images must not be split one by one."""
        return self.num_alike > _CLEAR_SHARE * self.num_images

    def __str__(self) -> str:
        """For people."""
        told = (
            f"{self.num_alike} of {self.num_images} images looked at are nearly the same as another "
            f"({' and '.join(self.pairs[0])})"
        )
        if self.group_by is None:
            return (
                f"{told}, and their names do not tell which belong together: a split tears them apart, and "
                "validation is too good, without --group-by or --val"
            )
        return (
            f"{told}: what {self.group_by!r} matches alike stays together; --group-by gives another "
            "expression, '.*' takes each image for itself"
        )


def find_near_duplicates(
    file_names: Iterable[str], images: Path, share: float, num_workers: int = 1
) -> NearDuplicates:
    """Look for images that are nearly the same: next to each other by name, or anywhere with equal hashes.

    Of more than `MOST_LOOKED_AT` only pairs of neighbours are looked at, at equal distances.

    Args:
        images: folder that file names are relative to; what cannot be read there is passed over.
        share: to be held out, see `held_out`; a key that cannot hold out half of it is none.
    """
    names = sorted(sorted(set(file_names)), key=_by_number)
    rows = _looked_at(len(names))
    with Workers(images, num_workers) as workers:
        found = list(workers.map(_hash, (names[row] for row in rows)))
    hashes = {row: bits for row, bits in zip(rows, found, strict=True) if bits is not None}
    neighbours = [(row, row + 1) for row in hashes if row + 1 in hashes]
    near = {(a, b) for a, b in neighbours if (hashes[a] ^ hashes[b]).bit_count() <= _MOST_BITS}
    equal = {
        (a, b)
        for a, b in pairwise(sorted(hashes, key=lambda row: (hashes[row], row)))
        if hashes[a] == hashes[b]
    }

    def explains(key: str) -> bool:
        groups = [group_of(name, re.compile(key)) for name in names]

        def together(pairs: Iterable[tuple[int, int]]) -> int:
            return sum(groups[a] == groups[b] for a, b in pairs)

        chosen = held_out(groups, share)
        return (
            together(near | equal) >= _EXPLAINED * len(near | equal)
            and together(near) >= _FILM * together(neighbours)
            and sum(group in chosen for group in groups) >= share * len(names) / 2
        )

    pairs = [(names[a], names[b]) for a, b in sorted(near | equal)]
    key = next(filter(explains, KEYS), None) if pairs else None
    return NearDuplicates(len(hashes), pairs, key)


def _by_number(name: str) -> str:
    """Sorts `9.png` before `10.png`."""
    return re.sub("[0-9]+", lambda found: found[0].zfill(20), name)


def _looked_at(count: int) -> list[int]:
    if count <= MOST_LOOKED_AT:
        return list(range(count))
    first = np.linspace(0, count - 2, MOST_LOOKED_AT // 2).astype(int)
    return np.union1d(first, first + 1).tolist()


def _hash(images: Path, name: str) -> int | None:
    return difference_hash(images / name)
