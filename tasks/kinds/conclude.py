"""Kind `conclude`: what the runs of a study answer to its questions."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from data.vocabulary.tables import write_table
from models.metrics.comparison import seeds_needed, student_interval
from models.metrics.interval import Interval
from models.metrics.options import ConclusionOptions, Question, run_and_name
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card
from tasks.pages.numbers import finite
from tasks.pages.study_page import (
    CANNOT_TELL,
    HOLDS,
    HOLDS_NOT,
    NOT_MEASURED,
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
    findings = [answer(question, runs) for question in questions]
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
    """The arm that gains most, its gain and what it is worth; being chosen by that gain flatters it."""
    places = {text: run_and_name(text) for text in arms}
    gains = {text: runs[run].get(f"gain_{arm}") for text, (run, arm) in places.items()}
    known = {text: gain for text, gain in gains.items() if gain is not None}
    if not known:
        return {}
    best = max(known, key=known.__getitem__)
    run, arm = places[best]
    names = {
        "gain_best": f"gain_{arm}",
        "worth_best": f"worth_{arm}",
        "num_seeds": "num_seeds",
    }
    return {"best_arm": best} | named_numbers(
        {name: f"{run}: {number}" for name, number in names.items()}, runs
    )


def answer(question: Question, runs: Mapping[str, Numbers]) -> Finding:
    """Answer a question from the numbers of runs `NAME` or `NAME/SEED`.

    Each step from one side to the next has an interval of its own: the least of several noisy steps, seed
    by seed, would be below zero where all are equal.
    """
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
        return Finding(question.text, question.order, (), (), (), None, NOT_MEASURED, None)
    values = tuple(zip(*columns, strict=True))
    steps = [[a - b for a, b in zip(*pair, strict=True)] for pair in pairwise(values)]
    intervals = [student_interval(step) for step in steps]
    least = min(range(len(steps)), key=lambda index: intervals[index].value)
    return Finding(
        claim=question.text,
        order=question.order,
        seeds=tuple(seeds),
        values=values,
        differences=steps[least],
        effect=intervals[least],
        verdict=_verdict(intervals),
        seeds_needed=seeds_needed(steps[least]),
    )


def _verdict(steps: Sequence[Interval]) -> str:
    """An order holds where every step is above zero, and does not where one is below."""
    if all(step.low > 0 for step in steps):
        return HOLDS
    if all(step.high < 0 for step in steps):
        return OPPOSITE
    return HOLDS_NOT if any(step.high < 0 for step in steps) else CANNOT_TELL


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
