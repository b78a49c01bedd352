"""A study's page: verdicts in words and colours, effects, and the runs' numbers."""

import math
import re

import pytest

from models.metrics.interval import Interval
from tasks.pages.study_page import (
    Finding,
    answer_table,
    best_in_words,
    own_numbers,
    write_study_page,
)


def finding(effect, verdict, differences=(0.1, 0.12, 0.11), **more):
    given = {
        "claim": "Hard <images> help",
        "order": ("a: map_real_hard", "a: map_real"),
        "seeds": ("0", "1", "2")[: len(differences)],
        "values": ((0.6,) * len(differences), (0.5,) * len(differences)),
        "seeds_needed": None,
        "neighbours": ("a: map_real_hard", "a: map_real"),
    }
    return Finding(effect=effect, verdict=verdict, differences=differences, **(given | more))


HOLDS = finding(Interval(0.11, 0.08514, 0.13484), "holds", seeds_needed=2)
OPPOSITE = finding(Interval(-0.2, -0.3, -0.1), "the opposite holds")
UNCLEAR = finding(Interval(0.1, -0.1, 0.3), "cannot tell at this size", seeds_needed=17)
ONE_SEED = finding(
    Interval(0.1, -math.inf, math.inf), "cannot tell at this size", differences=(0.1,)
)
CORRECTED = finding(
    Interval(0.11, 0.01, 0.21), "cannot tell at this size", p_value=0.04, adjusted_p=0.0799999
)
MISSING = finding(None, "not measured", differences=(), seeds=(), values=())

RUNS = {"a/0": {"map_real": 0.5, "kid": None}, "a/1": {"map_real": 0.51234, "worth": "-inf"}}
REPORTS = {"a/0": "report/0123", "a/1": "report/4567"}


@pytest.fixture
def written(tmp_path):
    """Writes a study's page and returns it."""

    def write(*findings):
        write_study_page(tmp_path / "study.html", findings, RUNS, REPORTS, {})
        return (tmp_path / "study.html").read_text()

    return write


@pytest.mark.parametrize(
    ("item", "mark", "words"),
    [
        (HOLDS, "helps", "+0.110 (+0.085 to +0.135) in map_real_hard − map_real.\nIt tells with 3"),
        (OPPOSITE, "costs", "Difference -0.20 (-0.30 to -0.10)"),
        (UNCLEAR, "unknown", "About 17 seeds would tell"),
        (ONE_SEED, "unknown", "Difference +0.1 (one seed: no interval)"),
        (CORRECTED, "unknown", "The interval excludes zero, but the corrected p is 0.08.\n"),
        (MISSING, "unknown", "No run has all of its numbers."),
    ],
)  # fmt: skip
def test_a_verdict_is_told_in_words_and_colour(written, item, mark, words):
    page = written(item)
    assert f'<span class="{mark}">{item.verdict}</span>' in page
    assert words in page
    assert "Hard &lt;images&gt; help" in page
    assert "a: map_real_hard &gt; a: map_real" in page
    assert ("data:image/png" in page) == (item is not MISSING)


def test_the_correction_is_told_where_there_are_several_questions(written):
    note = "after Holm's correction for all 2\nquestions"
    assert note in written(CORRECTED, CORRECTED, MISSING, ONE_SEED)
    alone = written(CORRECTED, MISSING, ONE_SEED)
    assert "Holm" not in alone
    assert "excludes zero" not in written(HOLDS, OPPOSITE, UNCLEAR, ONE_SEED, MISSING)


def test_of_a_longer_order_the_neighbours_that_decide_are_named(written):
    order = ("a: easy", "a: origin", "a: hard")
    values = ((0.9,) * 3, (0.8,) * 3, (0.7,) * 3)
    item = finding(
        Interval(0.11, -0.1, 0.3),
        "cannot tell at this size",
        order=order,
        values=values,
        neighbours=order[1:],
    )
    assert "Difference +0.11 (-0.10 to +0.30) in a: origin − a: hard." in written(item)
    assert answer_table([item])[0]["in"] == "a: origin − a: hard"
    missing = finding(None, "not measured", (), seeds=(), values=(), order=order, neighbours=())
    assert missing.unit == "easy, origin, hard"


def test_every_seed_has_its_numbers(written):
    page = written(HOLDS)
    assert page.count("<td>0.6000</td><td>0.5000</td><td>+0.1") == 3
    assert re.search(r"<tr><td>1</td><td>0.6000</td><td>0.5000</td><td>\+0.120</td></tr>", page)


def test_a_run_with_failed_trainings_is_marked(tmp_path, written):
    assert 'class="missing"' not in written(HOLDS)
    runs = {**RUNS, "a/2": {"num_missing": 2}}
    write_study_page(tmp_path / "study.html", [HOLDS], runs, {**REPORTS, "a/2": "report/89ab"}, {})
    page = (tmp_path / "study.html").read_text()
    assert (
        '<p class="missing"><strong>a/2: 2 of its trainings or their detections failed</strong>'
        in page
    )


def test_all_numbers_of_all_runs_are_there_what_is_missing_as_a_dash(written):
    page = written(HOLDS)
    for row in (
        "map_real</td><td>0.5</td><td>0.5123",
        "kid</td><td>—</td><td>—",
        "worth</td><td>—</td><td>-∞",
    ):
        assert f"<tr><td>{row}</td></tr>" in page
    assert "<details><summary>2 runs, 3 numbers</summary>" in page
    assert "| map_real | 0.5 | 0.5123 |" in page
    assert "report/4567" in page
    assert not re.search(r"""(src|href)=["']?(?!["']?data:image/)|https?://""", page)


def test_without_a_question_the_runs_are_the_page(written):
    page = written()
    assert "asks no question" in page
    assert "<h2>Effects</h2>" not in page
    assert page.index("<td>map_real</td>") < page.index("<details>")
    assert "Answers, Markdown" not in page


def test_answers_as_a_table():
    row = answer_table([UNCLEAR])[0]
    assert row["effect"] == "+0.10 (-0.10 to +0.30)"
    assert row["by seed"] == "+0.100, +0.120, +0.110"
    assert row["seeds that would tell"] == 17


BEST = {
    "gain_copy_paste": None, "best_arm": "tiles: real_origin", "gain_best": 0.0496,
    "gain_best_low": 0.0401, "gain_best_high": 0.0592, "worth_best": 100.5, "num_seeds": 3,
}  # fmt: skip


def test_the_best_arm_is_told_first_and_numbers_with_their_intervals(tmp_path):
    told = best_in_words(BEST)
    assert told.startswith("real_origin of the run tiles, ")
    assert "+0.0496 (+0.0401 to +0.0592) mAP over 3 seeds, as good as 100 more real images." in told
    assert own_numbers(BEST) == [
        {"number": "gain_copy_paste", "": None},
        {"number": "best_arm", "": "tiles: real_origin"},
        {"number": "gain_best", "": "+0.0496 (+0.0401 to +0.0592)"},
        {"number": "worth_best", "": 100.5},
        {"number": "num_seeds", "": 3},
    ]
    write_study_page(tmp_path / "study.html", (), RUNS, REPORTS, BEST)
    page = (tmp_path / "study.html").read_text()
    assert page.index('<p class="first">real_origin') < page.index("<table")
    assert "asks no question" not in page


def test_a_best_arm_without_real_images_has_none_to_add_to():
    told = best_in_words(BEST | {"best_arm": "tiles: synthetic_only"})
    assert ", as good as 100 real images." in told


@pytest.mark.parametrize("worth", ["inf", "-inf", "nan", None, -3.0])
def test_a_best_arm_without_a_worth_says_nothing_of_it(worth):
    assert "more real images" not in best_in_words(BEST | {"worth_best": worth})
    assert best_in_words({"num_seeds": 3}) is None
