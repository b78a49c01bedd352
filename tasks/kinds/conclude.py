"""Kind `conclude`: what the runs of a study answer to its questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa

from data.vocabulary.tables import write_table
from models.metrics.comparison import Interval, Verdict, seeds_needed, student_interval, verdict
from models.metrics.options import ConclusionOptions, Question
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card
from tasks.pages.numbers import finite
from tasks.pages.study_page import Finding, answer_table, write_study_page

ANSWERS_NAME = "answers.parquet"

_IN_WORDS: dict[Verdict, str] = {
    "helps": "holds",
    "costs": "the opposite holds",
    "cannot tell": "cannot tell at this size",
}

Context = StepContext[ConclusionOptions]
Numbers = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the runs say to a question.

    Attributes:
        seeds: of the runs, as far as they have all numbers; one without name where the study has no seeds.
        values: each side's number by seed, sides in the question's order.
        effect: least difference between neighbours, with Student's interval over the seeds; None where a
            number is in no run.
        verdict: in words.
        seeds_needed: with which the effect would tell, if it is what it seems.
    """

    question: Question
    seeds: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    effect: Interval | None
    verdict: str
    seeds_needed: int | None

    @property
    def per_seed(self) -> list[float]:
        """The least difference between neighbours of each seed."""
        return _least_steps(self.values)


def run(context: Context) -> Summary:
    """Write the table of answers and the study's page."""
    manifests = {name: context.manifest(f"reports/{name}") for name in context.many("reports")}
    runs = {name: manifest.summary["results"] for name, manifest in manifests.items()}
    answers = [answer(question, runs) for question in context.options.questions]
    rows = [_row(item) for item in answers]
    if rows:
        write_table(pa.Table.from_pylist(rows), context.out / ANSWERS_NAME)
    findings = [_finding(item) for item in answers]
    references = {name: manifest.reference for name, manifest in manifests.items()}
    write_study_page(context.out / "study.html", findings, runs, references)
    write_card(context.out, "Study", markdown_table(answer_table(findings)))
    return {"results": _numbers(answers)}


def answer(question: Question, runs: Mapping[str, Numbers]) -> Answer:
    """Answer a question from the numbers of runs `NAME` or `NAME/SEED`."""
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
        return Answer(question, (), (), None, "not measured", None)
    values = tuple(zip(*columns, strict=True))
    steps = _least_steps(values)
    effect = student_interval(steps)
    words = _IN_WORDS[verdict(effect)]
    return Answer(question, tuple(seeds), values, effect, words, seeds_needed(steps))


def _least_steps(values: tuple[tuple[float, ...], ...]) -> list[float]:
    """By seed the least difference between neighbouring sides."""
    return [min(a - b for a, b in pairwise(column)) for column in zip(*values, strict=True)]


def _row(item: Answer) -> dict[str, Any]:
    effect = item.effect
    return {
        "name": item.question.name,
        "claim": item.question.text,
        "order": list(item.question.order),
        "seeds": list(item.seeds),
        "values": [list(side) for side in item.values],
        "effect": effect.value if effect else None,
        "low": effect.low if effect else None,
        "high": effect.high if effect else None,
        "verdict": item.verdict,
        "seeds_needed": item.seeds_needed,
    }


def _finding(item: Answer) -> Finding:
    """An answer as the page has it."""
    return Finding(
        claim=item.question.text,
        order=item.question.order,
        seeds=item.seeds,
        values=item.values,
        differences=item.per_seed,
        effect=item.effect,
        verdict=item.verdict,
        seeds_needed=item.seeds_needed,
    )


def _numbers(answers: list[Answer]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for item in answers:
        name, effect = item.question.name, item.effect
        numbers[name] = effect.value if effect else None
        numbers[f"{name}_low"] = finite(effect.low) if effect else None
        numbers[f"{name}_high"] = finite(effect.high) if effect else None
        numbers[f"{name}_verdict"] = item.verdict
        numbers[f"{name}_num_seeds"] = len(item.seeds)
    return numbers
