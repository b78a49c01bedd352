"""Kind `conclude`: what the runs of a study answer to its questions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pyarrow as pa

from data.vocabulary.tables import write_table
from models.metrics.comparison import (
    Verdict,
    holm,
    paired_interval,
    paired_p_value,
    seeds_needed,
    verdict,
)
from models.metrics.interval import LEVEL, Interval
from models.metrics.options import ConclusionOptions, Question, run_and_name
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card
from tasks.pages.numbers import finite
from tasks.pages.study_page import (
    CANNOT_TELL,
    HOLDS,
    HOLDS_NOT,
    OPPOSITE,
    Finding,
    answer_table,
    best_in_words,
    own_numbers,
    write_study_page,
)

ANSWERS_NAME = "answers.parquet"

Context = StepContext[ConclusionOptions]
Numbers = Mapping[str, Any]


def run(context: Context) -> Summary:
    """Write the table of answers and the study's page."""
    manifests = {name: context.manifest(f"reports/{name}") for name in context.many("reports")}
    runs = {name: manifest.summary["results"] for name, manifest in manifests.items()}
    questions = context.options.questions
    findings = answers(questions, runs)
    if findings:
        rows = [_row(*pair) for pair in zip(questions, findings, strict=True)]
        write_table(pa.Table.from_pylist(rows), context.out / ANSWERS_NAME)
    references = {name: manifest.reference for name, manifest in manifests.items()}
    numbers = named_numbers(context.options.numbers, runs) | best_arm(context.options.best_of, runs)
    write_study_page(context.out / "study.html", findings, runs, references, numbers)
    write_card(
        context.out,
        "Study",
        *filter(None, [best_in_words(numbers)]),
        markdown_table(answer_table(findings)),
        markdown_table(own_numbers(numbers)),
    )
    for question, finding in zip(questions, findings, strict=True):
        numbers |= _numbers(question.name, finding)
    return {"results": numbers}


def named_numbers(names: Mapping[str, str], runs: Mapping[str, Numbers]) -> dict[str, Any]:
    """Numbers of runs by a study's own names, and the ends of their intervals; None where there is none."""
    found: dict[str, Any] = {}
    for name, text in names.items():
        run, number = run_and_name(text)
        found[name] = runs[run].get(number)
        ends = [end for end in ("_low", "_high") if f"{number}{end}" in runs[run]]
        found |= {f"{name}{end}": runs[run][f"{number}{end}"] for end in ends}
    return found


def best_arm(arms: Sequence[str], runs: Mapping[str, Numbers]) -> dict[str, Any]:
    """The arm that gains most, its gain, over so many seeds, and what it is worth; the choice flatters it."""
    places = {text: run_and_name(text) for text in arms}
    gains = {text: runs[run].get(f"gain_{arm}") for text, (run, arm) in places.items()}
    known = {text: gain for text, gain in gains.items() if gain is not None}
    if not known:
        return {}
    best = max(known, key=known.__getitem__)
    run, arm = places[best]
    names = {"gain_best": f"{run}: gain_{arm}", "worth_best": f"{run}: worth_{arm}"}
    num_seeds = runs[run].get(f"num_seeds_gain_{arm}", runs[run]["num_seeds"])
    return {"best_arm": best, **named_numbers(names, runs), "num_seeds": num_seeds}


def answers(questions: Sequence[Question], runs: Mapping[str, Numbers]) -> list[Finding]:
    """Answer questions from the numbers of runs `NAME` or `NAME/SEED`.

    Those that were measured with several seeds are one family for Holm's correction.
    """
    asked = [_measured(question, runs) for question in questions]
    adjusted = holm([item.p_value for item in asked])
    num_tested = sum(not math.isnan(p) for p in adjusted)
    return [_judged(item, p, num_tested) for item, p in zip(asked, adjusted, strict=True)]


def _measured(question: Question, runs: Mapping[str, Numbers]) -> Finding:
    seeds, columns = [], []
    for seed in dict.fromkeys(name.partition("/")[2] for name in runs):
        numbers = [
            runs.get(f"{run}/{seed}" if seed else run, {}).get(name) for run, name in question.sides
        ]
        known = [float(number) for number in numbers if number is not None]
        if len(known) == len(numbers):
            seeds.append(seed)
            columns.append(known)
    if not columns:
        return Finding(question.text, question.order, (), (), (), (), None)
    values = tuple(zip(*columns, strict=True))
    steps = list(pairwise(values))
    effects = [paired_interval(*step) for step in steps]
    deciding, p_value = _deciding(effects, [paired_p_value(*step) for step in steps])
    return Finding(
        claim=question.text,
        order=question.order,
        seeds=tuple(seeds),
        values=values,
        neighbours=question.order[deciding : deciding + 2],
        differences=[a - b for a, b in zip(*steps[deciding], strict=True)],
        effect=effects[deciding],
        p_value=p_value,
    )


def _deciding(effects: Sequence[Interval], p_values: Sequence[float]) -> tuple[int, float]:
    """Index of the step from one side to the next that decides on an order, and the order's p value.

    Where no step is below zero the order holds as far as its most doubtful one, whose p value is the order's
    (intersection-union test: Berger, Technometrics 24, 1982). One step below zero is enough against it: the
    surest decides, its p value times the number of steps (Bonferroni). NaN is more doubtful than any number;
    of equally doubtful ones it is the least.
    """
    doubts = [math.inf if math.isnan(p) else p for p in p_values]
    means = [effect.value for effect in effects]
    below = [index for index, mean in enumerate(means) if mean < 0]
    if not below:
        found = max(range(len(means)), key=lambda index: (doubts[index], -means[index]))
        return found, p_values[found]
    found = min(below, key=lambda index: (doubts[index], means[index]))
    return found, min(p_values[found] * len(means), 1.0)  # of NaN NaN


def _judged(item: Finding, adjusted_p: float, num_tested: int) -> Finding:
    """A finding with its verdict.

    Args:
        num_tested: the questions in the family.
    """
    if item.effect is None:
        return item
    num_steps = len(item.order) - 1 if item.effect.value < 0 else 1
    level = 1 - (1 - LEVEL) / (max(num_tested, 1) * num_steps)  # as the first is judged at worst
    return replace(
        item,
        adjusted_p=adjusted_p,
        verdict=_verdict(item.values, verdict(item.effect, adjusted_p)),
        seeds_needed=seeds_needed(item.differences, level),
    )


def _verdict(values: Sequence[Sequence[float]], told: Verdict) -> str:
    """What the deciding step's verdict says of the order."""
    if told == "cannot tell":
        return CANNOT_TELL
    if told == "helps":
        return HOLDS
    opposite = all(paired_interval(*step).high < 0 for step in pairwise(values))
    return OPPOSITE if opposite else HOLDS_NOT


def _row(question: Question, item: Finding) -> dict[str, Any]:
    effect = item.effect
    return {
        "name": question.name,
        "claim": item.claim,
        "order": list(item.order),
        "seeds": list(item.seeds),
        "values": [list(side) for side in item.values],
        "effect": effect.value if effect else None,
        "low": effect.low if effect else None,
        "high": effect.high if effect else None,
        "p_value": item.p_value,
        "adjusted_p": item.adjusted_p,
        "verdict": item.verdict,
        "seeds_needed": item.seeds_needed,
    }


def _numbers(name: str, item: Finding) -> dict[str, Any]:
    effect = item.effect
    return {
        name: finite(effect.value) if effect else None,
        f"{name}_low": finite(effect.low) if effect else None,
        f"{name}_high": finite(effect.high) if effect else None,
        f"{name}_verdict": item.verdict,
        f"{name}_num_seeds": len(item.seeds),
    }
