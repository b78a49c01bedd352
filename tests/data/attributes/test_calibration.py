import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from data.attributes.calibration import (
    by_cause,
    by_class,
    by_crowding,
    by_size,
    easiest_and_hardest,
    hard_share,
    rank_correlation,
    scored_things,
)


def scored(**columns):
    count = len(next(iter(columns.values())))
    defaults = {
        "attribute": ["easy"] * count,
        "area": np.full(count, 100.0),
        "image_id": np.arange(count),
        "category_id": np.ones(count, int),
        "difficulty": pa.nulls(count, pa.string()),
        "best_iou": np.zeros(count),
        "matched_score": pa.nulls(count, pa.float32()),
    }
    return pa.table(defaults | columns)


def test_every_thing_meets_its_own_record(dataset, attributes):
    """The fixture calls an object hard where its recorded contrast is low."""
    table = scored_things(dataset, attributes, "train")
    contrasts = [json.loads(text)["contrast"] for text in table["difficulty"].to_pylist()]
    expected = ["hard" if value < 0.5 else "easy" for value in contrasts]
    assert table["attribute"].to_pylist() == expected
    causes = {row["cause"]: row for row in by_cause(table)}
    assert causes["contrast"]["hard: lowest third"] == 1
    assert causes["contrast"]["highest third"] == 0
    assert causes["contrast"]["rank correlation with hard"] < -0.5
    assert sum(row["objects"] for row in by_class(table, dataset.things)) == table.num_rows
    assert hard_share(table) == pytest.approx(expected.count("hard") / len(expected))


def test_classes_that_occur_stand_in_the_order_of_their_names():
    hard = ["hard", "easy", "hard", "hard", "easy"]
    table = scored(category_id=np.array([7, 2, 7, 9, 7]), attribute=hard)
    assert by_class(table, {9: "cat", 7: "dog", 3: "none", 2: "cow"}) == [
        {"class": "cat", "objects": 1, "share of hard": 1.0},
        {"class": "dog", "objects": 3, "share of hard": 2 / 3},
        {"class": "cow", "objects": 1, "share of hard": 0.0},
    ]


def test_sizes_are_cocos_or_thirds():
    areas = np.array([10.0, 1024, 9215, 9216, 1023])
    hard = ["hard", "easy", "hard", "hard", "easy"]
    rows = by_size(scored(area=areas, attribute=hard))
    assert [row["objects"] for row in rows] == [2, 2, 1]
    assert [row["share of hard"] for row in rows] == [0.5, 0.5, 1]
    rows = by_size(scored(area=np.arange(1.0, 10)))
    assert [row["objects"] for row in rows] == [3, 3, 3]
    assert rows[0]["size"].startswith("smallest third")


def test_crowding_counts_the_things_of_the_image():
    images = np.repeat([1, 2, 3, 4, 5], [1, 2, 3, 4, 9])
    rows = by_crowding(scored(image_id=images))
    assert {row["things in the image"]: row["objects"] for row in rows} == {
        "1": 1, "2": 2, "3–4": 7, "9–16": 9,
    }  # fmt: skip


def test_causes_are_whatever_numbers_are_recorded():
    difficulty = [json.dumps({"blur": k, "note": "text"}) for k in range(6)] + [None]
    hard = ["easy"] * 4 + ["hard"] * 3
    (row,) = by_cause(scored(difficulty=difficulty, attribute=hard))
    assert row["cause"] == "blur"
    assert [row["hard: lowest third"], row["middle"], row["highest third"]] == [0, 0, 1]
    assert by_cause(scored(area=np.ones(3))) == []


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    values, other = rng.integers(0, 5, 40).astype(float), rng.random(40)
    assert rank_correlation(values, other) == pytest.approx(spearmanr(values, other).statistic)
    assert rank_correlation(values, np.zeros(40)) is None


def test_the_hardest_are_not_found_and_large():
    scores = pa.array([0.9, None, 0.8, None], pa.float32())
    table = scored(
        best_iou=np.array([0.9, 0, 0.5, 0]),
        matched_score=scores,
        area=np.array([5.0, 10, 5, 20]),
    )
    easiest, hardest = easiest_and_hardest(table, 2)
    assert easiest.tolist() == [0, 2]
    assert hardest.tolist() == [3, 1]
