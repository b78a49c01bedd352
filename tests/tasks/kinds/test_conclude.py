"""The answers of a study, and its page, from the reports of its runs."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from data.artifacts.manifest import Manifest
from models.metrics.comparison import seeds_needed
from models.metrics.options import ConclusionOptions, Question
from tasks.execution.context import StepContext
from tasks.kinds.conclude import answers, best_arm, named_numbers, run


def question(*order, name="claim_1", text="Hard images <help> detectors"):
    return Question(name=name, text=text, order=order)


def answer(asked, numbers):
    return answers([asked], numbers)[0]


def runs(**numbers):
    """Runs `a/0`, `b/0`, … with one number `map` by seed."""
    return {
        f"{run}/{seed}": {"map": value}
        for run, values in numbers.items()
        for seed, value in enumerate(values)
        if value is not None
    }


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ((0.50, 0.52, 0.51), (0.40, 0.41, 0.41), "holds"),
        ((0.40, 0.41, 0.41), (0.50, 0.52, 0.51), "the opposite holds"),
        ((0.50, 0.52, 0.51), (0.49, 0.55, 0.50), "cannot tell at this size"),
        ((0.50,), (0.10,), "cannot tell at this size"),
    ],
)
def test_every_verdict_has_its_cause(a, b, verdict):
    found = answer(question("a: map", "b: map"), runs(a=a, b=b))
    assert found.verdict == verdict
    assert found.effect.value == pytest.approx(sum(a) / len(a) - sum(b) / len(b))


def order_of_three(columns):
    numbers = {
        f"a/{seed}": dict(zip(("easy", "origin", "hard"), column, strict=True))
        for seed, column in enumerate(columns)
    }
    return answer(question("a: easy", "a: origin", "a: hard"), numbers)


@pytest.mark.parametrize(
    ("columns", "verdict"),
    [
        ([(0.9, 0.8, 0.7), (0.91, 0.8, 0.69), (0.9, 0.81, 0.7)], "holds"),
        ([(0.7, 0.8, 0.9), (0.69, 0.8, 0.91), (0.7, 0.81, 0.9)], "the opposite holds"),
        ([(0.9, 0.8, 0.9), (0.91, 0.8, 0.89), (0.9, 0.81, 0.9)], "does not hold"),
        ([(0.9, 0.8, 0.7), (0.8, 0.9, 0.7)], "cannot tell at this size"),
    ],
)
def test_an_order_holds_where_each_step_does(columns, verdict):
    assert order_of_three(columns).verdict == verdict


TIGHT, NOISY = np.array([0.009, 0.010, 0.011]), np.array([0.01, 0.20, 0.09])


def with_p_value(p):
    """Three differences above zero of that two-sided p value."""
    return 0.01 * (np.array([-1, 0, 1]) + stats.t.isf(p / 2, 2) / math.sqrt(3))


def two_steps(first, second):
    """An order of three sides that are so far apart."""
    middle = np.full(3, 0.5)
    return order_of_three(np.stack([middle + first, middle, middle - second], axis=1))


@pytest.mark.parametrize(
    ("first", "second", "neighbours"),
    [(TIGHT, NOISY, ("a: origin", "a: hard")), (NOISY, TIGHT, ("a: easy", "a: origin"))],
)
def test_a_larger_step_that_is_noisier_decides_on_an_order(first, second, neighbours):
    found = two_steps(first, second)
    assert found.verdict == "cannot tell at this size"
    assert found.neighbours == neighbours
    assert found.differences == pytest.approx(NOISY)
    assert found.p_value == pytest.approx(stats.ttest_1samp(NOISY, 0).pvalue)
    assert found.seeds_needed == seeds_needed(found.differences) > 3


def test_the_surest_reverse_step_decides():
    found = two_steps(-NOISY, -TIGHT)
    assert found.verdict == "does not hold"
    assert found.neighbours == ("a: origin", "a: hard")
    assert found.differences == pytest.approx(-TIGHT)
    assert found.effect.high < 0
    assert found.p_value == pytest.approx(2 * stats.ttest_1samp(TIGHT, 0).pvalue)
    assert two_steps(TIGHT, -TIGHT).differences == pytest.approx(-TIGHT)


def test_p_of_a_reverse_step_is_once_for_each_step_of_the_order():
    reverse = with_p_value(0.045)
    found = two_steps(TIGHT, -reverse)
    assert found.effect.high < 0
    assert found.p_value == pytest.approx(0.09)
    assert found.verdict == "cannot tell at this size"
    assert found.seeds_needed == seeds_needed(reverse, 0.975) > seeds_needed(reverse)
    assert two_steps(TIGHT, -with_p_value(0.7)).p_value == 1


def test_a_step_of_zero_leaves_an_order_untold():
    found = two_steps(TIGHT, np.zeros(3))
    assert (found.p_value, found.verdict) == (1, "cannot tell at this size")


@pytest.mark.parametrize(("column", "least"), [((0.9, 0.8, 0.75), 0.05), ((0.7, 0.8, 0.95), -0.15)])
def test_of_one_seed_the_least_step_is_shown_without_a_p_value(column, least):
    found = order_of_three([column])
    assert found.differences == pytest.approx([least])
    assert math.isnan(found.p_value)
    assert found.verdict == "cannot tell at this size"


@pytest.mark.parametrize("sign", [1, -1])
def test_several_questions_are_one_family_for_holms_correction(sign):
    gains = {"three": 0.03, "four": 0.04, "unclear": 0.5}
    numbers = {f"run/{seed}": {"base": 0.5} for seed in range(3)}
    for name, p in gains.items():
        for seed, gain in enumerate(with_p_value(p)):
            numbers[f"run/{seed}"][name] = 0.5 + sign * gain
    numbers["run/0"]["once"] = 0.9
    asked = {
        name: question(f"run: {name}", "run: base", name=name)
        for name in (*gains, "once", "nowhere")
    }
    told = "holds" if sign == 1 else "the opposite holds"
    for name in ("three", "four"):
        alone = answer(asked[name], numbers)
        assert (alone.verdict, alone.adjusted_p) == (told, pytest.approx(gains[name]))
    three, once, nowhere, four = answers(
        [asked[name] for name in ("three", "once", "nowhere", "four")], numbers
    )
    assert (three.verdict, four.verdict) == ("cannot tell at this size",) * 2
    assert (three.adjusted_p, four.adjusted_p) == pytest.approx((0.06, 0.06))
    assert (once.verdict, nowhere.verdict) == ("cannot tell at this size", "not measured")
    assert all(math.isnan(item.adjusted_p) for item in (once, nowhere))
    three, _, unclear, *_ = answers(list(asked.values()), numbers)
    assert three.adjusted_p == pytest.approx(0.09)
    assert unclear.seeds_needed == seeds_needed(unclear.differences, 1 - 0.05 / 3)
    assert unclear.seeds_needed > seeds_needed(unclear.differences)


def test_equal_sides_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    verdicts = [order_of_three(rng.normal(0.5, 0.01, (3, 3))).verdict for _ in range(300)]
    assert np.mean([verdict != "cannot tell at this size" for verdict in verdicts]) < 0.08


def test_a_seed_without_a_number_is_left_out_and_a_number_that_is_nowhere_is_said():
    found = answer(question("a: map", "b: map"), runs(a=(0.5, 0.5), b=(0.4, None)))
    assert found.seeds == ("0",)
    missing = answer(question("a: map", "b: kid"), runs(a=(0.5,), b=(0.4,)))
    assert (missing.verdict, missing.effect, missing.differences) == ("not measured", None, ())


def conclusion(folder, numbers, *questions):
    """Run the step; returns its summary, page and card."""
    folders = {}
    for name, results in numbers.items():
        folders[f"reports/{name}"] = folder / name.replace("/", "-")
        folders[f"reports/{name}"].mkdir(parents=True)
        manifest = Manifest(
            kind="report", key=f"key-of-{name}", versions={}, options={}, foreign={}, inputs={}, files={},
            summary={"results": results}, environment={}, seconds=1, peak_memory_bytes=1, created_at="",
        )  # fmt: skip
        (folders[f"reports/{name}"] / "manifest.json").write_text(manifest.model_dump_json())
    (folder / "out").mkdir()
    summary = run(
        StepContext(
            ConclusionOptions(questions=questions), folders, folder / "out", folder, "key", folder, 1,
            lambda *report: None,
        )
    )  # fmt: skip
    page, card = ((folder / "out" / name).read_text() for name in ("study.html", "card.md"))
    return summary, page, card


def test_the_step_writes_answers_page_and_card(tmp_path):
    numbers = runs(a=(0.50, 0.52, 0.51), b=(0.40, 0.41, 0.41))
    numbers["a/1"]["only_here"] = "inf"
    asked = (
        question("a: map", "b: map"),
        question("a: map", "b: kid", name="claim_2", text="No number"),
    )
    summary, page, card = conclusion(tmp_path, numbers, *asked)
    assert summary["results"]["claim_1_verdict"] == "holds"
    assert summary["results"]["claim_2"] is None
    table = pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()
    assert [row["verdict"] for row in table] == ["holds", "not measured"]
    assert table[0]["p_value"] == table[0]["adjusted_p"] == pytest.approx(0.0010395, rel=1e-3)
    assert "Hard images &lt;help&gt; detectors" in page
    effect = '<span class="helps">Holds</span>.\nDifference +0.103 (+0.089 to +0.118) in map.'
    assert effect in page
    assert "<td>only_here</td><td>—</td><td>∞</td>" in page  # a number that others lack is shown
    assert "report/key-of-a/0" in page
    assert "| No number | not measured | — | map − kid | — | — | — |" in card


def test_a_study_without_a_question_shows_its_runs(tmp_path):
    summary, page, _ = conclusion(tmp_path, {"a": {"map": 0.5}, "b": {"map": 0.4}})
    assert summary == {"results": {}}
    assert "asks no question" in page
    assert "<td>map</td><td>0.5</td><td>0.4</td>" in page
    assert "data:image" not in page
    assert not (tmp_path / "out" / "answers.parquet").exists()


RUNS = {
    "a": {"num_seeds": 5, "gain_real_hard": 0.01, "gain_real_hard_low": -0.01, "gain_real_hard_high": 0.03,
          "worth_real_hard": 40.0, "gain_real_easy": None},
    "b": {"num_seeds": 3, "gain_real_hard": 0.02, "gain_real_hard_low": 0.01, "gain_real_hard_high": 0.03,
          "worth_real_hard": "inf"},
}  # fmt: skip


def test_numbers_of_a_study_bring_their_intervals_along():
    names = {"gain": "a: gain_real_hard", "worth": "b: worth_real_hard", "no": "a: nothing"}
    assert named_numbers(names, RUNS) == {
        "gain": 0.01, "gain_low": -0.01, "gain_high": 0.03, "worth": "inf", "no": None,
    }  # fmt: skip


def test_the_best_arm_is_that_of_the_greatest_gain():
    assert best_arm(["a: real_easy", "a: real_hard", "b: real_hard"], RUNS) == {
        "best_arm": "b: real_hard", "gain_best": 0.02, "gain_best_low": 0.01, "gain_best_high": 0.03,
        "worth_best": "inf", "num_seeds": 3,
    }  # fmt: skip
    assert best_arm(["a: real_easy"], RUNS) == {}
    holed = {"b": RUNS["b"] | {"num_seeds_real_hard": 2, "num_seeds_gain_real_hard": 1}}
    assert best_arm(["b: real_hard"], holed)["num_seeds"] == 1
