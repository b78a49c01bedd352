"""What the hard objects have in common: shares by class, size, crowding and recorded cause."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from data.layouts.layout import PerceptionAttribute
from data.vocabulary.splits import Split
from data.vocabulary.tables import BOX_COLUMNS, Dataset

_COCO_AREAS = (32.0**2, 96.0**2)
"""COCO's bounds between small, medium and large, square pixels."""

_KEYS = ["split", "object_id", "is_thing"]

Rows = list[dict[str, Any]]


def scored_things(dataset: Dataset, attributes: pa.Table, split: Split) -> pa.Table:
    """Attributes of a split's things beside their boxes, areas and recorded difficulty."""
    things = pc.field("is_thing") & (pc.field("split") == split)
    objects = dataset.objects.select([*_KEYS, "area", "difficulty", *BOX_COLUMNS]).filter(things)
    joined = attributes.filter(things).join(objects, _KEYS, join_type="inner")
    return joined.sort_by([("image_id", "ascending"), ("object_id", "ascending")])


def is_hard(scored: pa.Table) -> Bool[np.ndarray, " objects"]:
    """Which objects are hard."""
    hard = pc.equal(scored["attribute"], str(PerceptionAttribute.HARD))
    return hard.to_numpy()


def hard_share(attributes: pa.Table) -> float:
    """Share of hard objects."""
    return float(is_hard(attributes).mean())


def by_class(scored: pa.Table, names: Mapping[int, str]) -> Rows:
    """Number of objects and share of hard of every class that occurs."""
    ids, places = np.unique(scored["category_id"].to_numpy(), return_inverse=True)
    counts, hard = np.bincount(places), np.bincount(places, weights=is_hard(scored))
    found = dict(zip(ids.tolist(), zip(counts.tolist(), hard.tolist(), strict=True), strict=True))
    return [
        {"class": name, "objects": found[key][0], "share of hard": found[key][1] / found[key][0]}
        for key, name in names.items()
        if key in found
    ]


def by_size(scored: pa.Table) -> Rows:
    """The same by size."""
    return _rows("size", size_groups(scored["area"].to_numpy()), is_hard(scored))


def size_groups(areas: Float[np.ndarray, " objects"]) -> dict[str, Bool[np.ndarray, " objects"]]:
    """Which objects are of each of COCO's sizes; of each third where all are of one COCO size."""
    bounds = np.array(_COCO_AREAS)
    names = ["small", "medium", "large"]
    if len(np.unique(np.searchsorted(bounds, areas, side="right"))) < 2:
        bounds = np.quantile(areas, [1 / 3, 2 / 3])
        names = ["smallest third", "middle third", "largest third"]
    group = np.searchsorted(bounds, areas, side="right")
    limits = [f"area < {bounds[0]:.0f} px²", f"< {bounds[1]:.0f} px²", "the rest"]
    return {f"{names[i]} ({limits[i]})": group == i for i in range(3)}


def by_crowding(scored: pa.Table) -> Rows:
    """The same by the number of things in the object's image, in powers of two."""
    _, image, counts = np.unique(
        scored["image_id"].to_numpy(), return_inverse=True, return_counts=True
    )
    level = np.ceil(np.log2(counts[image])).astype(int)
    groups = {_between(2**k // 2 + 1, 2**k): level == k for k in np.unique(level).tolist()}
    return _rows("things in the image", groups, is_hard(scored))


def _between(low: int, high: int) -> str:
    return str(high) if low >= high else f"{low}–{high}"


def by_cause(scored: pa.Table) -> Rows:
    """Share of hard by thirds of every recorded cause of difficulty, and the rank correlation.

    Values that occur often stay together, so thirds may differ in size, or be empty.
    """
    records = [json.loads(text) if text else {} for text in scored["difficulty"].to_pylist()]
    causes = sorted({name for record in records for name in record})
    hard = is_hard(scored)
    rows = []
    for cause in causes:
        values = [record.get(cause) for record in records]
        known = np.array([isinstance(value, int | float) for value in values])
        if known.any():
            numbers = np.array([values[i] for i in np.flatnonzero(known)], dtype=np.float64)
            rows.append({"cause": cause, **_by_thirds(numbers, hard[known])})
    return rows


def _by_thirds(
    values: Float[np.ndarray, " objects"], hard: Bool[np.ndarray, " objects"]
) -> dict[str, float | None]:
    third = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values, side="left")
    names = ("hard: lowest third", "middle", "highest third")
    shares = {name: _mean(hard[third == i]) for i, name in enumerate(names)}
    return shares | {"rank correlation with hard": rank_correlation(values, hard)}


def rank_correlation(
    values: Float[np.ndarray, " objects"], other: Float[np.ndarray, " objects"] | np.ndarray
) -> float | None:
    """Spearman's rank correlation; None where one of the two is constant.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.1, 5.0]))
    1.0
    """
    ranks, others = rankdata(values), rankdata(other)
    if np.ptp(ranks) == 0 or np.ptp(others) == 0:
        return None
    return round(float(np.corrcoef(ranks, others)[0, 1]), 12)


def easiest_and_hardest(
    scored: pa.Table, count: int
) -> tuple[Int[np.ndarray, " easiest"], Int[np.ndarray, " hardest"]]:
    """Rows of highest and of lowest IoU × score; of objects found not at all the largest first."""
    ease = scored["best_iou"].to_numpy() * scored["matched_score"].fill_null(0).to_numpy()
    order = np.lexsort([-scored["area"].to_numpy(), ease])
    return order[::-1][:count], order[:count]


def _mean(hard: np.ndarray) -> float | None:
    return float(hard.mean()) if len(hard) else None


def _rows(title: str, groups: Mapping[str, np.ndarray], hard: np.ndarray) -> Rows:
    chosen: Sequence[tuple[str, np.ndarray]] = [(k, v) for k, v in groups.items() if v.any()]
    return [
        {title: name, "objects": int(members.sum()), "share of hard": _mean(hard[members])}
        for name, members in chosen
    ]
