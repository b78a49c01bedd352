"""The page of a study: what its runs say to its questions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.metrics.comparison import Verdict
from models.metrics.interval import Interval, format_interval
from tasks.pages.cards import markdown_table
from tasks.pages.html import write_page
from tasks.pages.plots import Estimate, effect_panels
from tasks.pages.report_tables import shown_number

HOLDS, OPPOSITE, HOLDS_NOT = "holds", "the opposite holds", "does not hold"
CANNOT_TELL, NOT_MEASURED = "cannot tell at this size", "not measured"
"""Verdicts."""

_MARKS: dict[str, Literal["helps", "costs"]] = {
    HOLDS: "helps",
    OPPOSITE: "costs",
    HOLDS_NOT: "costs",
}

Runs = Mapping[str, Mapping[str, Any]]
"""A run's name to its numbers."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the runs say to a question.

    Attributes:
        claim: that was asked about.
        order: "RUN: NUMBER", the one that is to be highest first.
        seeds: names of the runs' seeds; one without name where there are none.
        values: each side's number by seed, sides in order.
        neighbours: the two in `order` whose difference decides.
        differences: of each seed between them.
        effect: their mean with its interval; None where it was not measured.
        p_value: of the question; NaN where it was not measured, or with one seed.
        adjusted_p: after Holm's correction for all questions.
        verdict: one of the five above.
        seeds_needed: with which the effect would tell, if it is what it seems; None where that is not known.
    """

    claim: str
    order: Sequence[str]
    seeds: Sequence[str]
    values: Sequence[Sequence[float]]
    neighbours: Sequence[str]
    differences: Sequence[float]
    effect: Interval | None
    p_value: float = math.nan
    adjusted_p: float = math.nan
    verdict: str = NOT_MEASURED
    seeds_needed: int | None = None

    @property
    def mark(self) -> Literal["helps", "costs", "unknown"]:
        """How the verdict is coloured."""
        return _MARKS.get(self.verdict, "unknown")

    @property
    def unit(self) -> str:
        """The number that differs, or those that do; of a longer order the neighbours that decide."""
        if len(self.order) > 2 and self.neighbours:
            return " − ".join(self.neighbours)
        names = dict.fromkeys(side.partition(":")[2].strip() for side in self.order)
        return (" − " if len(names) == 2 else ", ").join(names)

    @property
    def effect_in_words(self) -> str:
        """The effect with its interval."""
        if self.effect is None:
            return "—"
        single = "" if math.isfinite(self.effect.high) else " (one seed: no interval)"
        return format_interval(self.effect, sign=True) + single

    @property
    def is_corrected(self) -> bool:
        """Whether it is the correction that leaves an interval beyond zero without a verdict."""
        told = self.effect and (self.effect.low > 0 or self.effect.high < 0)
        return bool(told) and self.mark == "unknown"

    @property
    def would_tell(self) -> str:
        """How many seeds would tell."""
        if self.mark != "unknown":
            return f"It tells with {len(self.seeds)} seeds."
        if self.effect is None:
            return "No run has all of its numbers."
        if self.seeds_needed is None:
            return "How many seeds would tell is not known."
        return f"About {self.seeds_needed} seeds would tell, if the effect is what it seems."

    @property
    def by_seed(self) -> list[dict[str, Any]]:
        """The sides' numbers and the difference that decides, a row a seed."""
        sides = dict(zip(self.order, self.values, strict=True)) if self.values else {}
        return [
            {
                "seed": seed or "—",
                **{name: f"{values[index]:#.4g}" for name, values in sides.items()},
                "difference": f"{self.differences[index]:+#.3g}",
            }
            for index, seed in enumerate(self.seeds)
        ]

    def estimate(self) -> Estimate | None:
        """The effect as a plot has it; None where it was not measured or has no end."""
        if self.effect is None or not math.isfinite(self.effect.value):
            return None
        unit = f"difference in {self.unit}"
        told: Verdict = "cannot tell" if self.mark == "unknown" else self.mark
        return Estimate(self.claim, self.effect, self.differences, unit, told)


_BODY = """
{% if best %}<p class="first">{{ best }}</p>{% endif %}
{% for run, count in holes.items() %}
<p class="missing"><strong>{{ run }}: {{ count }} of its trainings or their detections failed</strong>; no
question is answered with numbers of theirs.</p>
{% endfor %}
{% if findings %}
<ol>{% for item in findings %}
<li>{{ item.claim }}: <span class="{{ item.mark }}">{{ item.verdict }}</span></li>{% endfor %}</ol>
{% if effects %}<h2>Effects</h2>
<div class="plots">{{ plot(effects, "effects with their intervals") }}</div>
<p class="note">For each question the difference of those neighbours in the claimed order that decide: the
most doubtful, or where some are in reverse the surest of those, its p value times the number of steps. Right
of zero the order holds. Points are means over the seeds, lines their 95% intervals (Student), grey dots
single seeds. Each panel has its own unit.
{% if num_tested > 1 %}An effect is coloured where it tells after Holm's correction for all {{ num_tested }}
questions.{% endif %}</p>
{% endif %}
{% for item in findings %}<h2>{{ item.claim }}</h2>
<p><span class="{{ item.mark }}">{{ item.verdict | capitalize }}</span>.
{% if item.effect %}
Difference {{ item.effect_in_words }} in {{ item.unit }}.
{% endif %}
{% if item.is_corrected %}
The interval excludes zero, but the corrected p is {{ item.adjusted_p | number }}.
{% endif %}
{{ item.would_tell }}</p>
<p class="note">Claimed order, the highest first: {{ " > ".join(item.order) }}</p>
{% if item.by_seed %}{{ table(item.by_seed) }}{% endif %}
{% endfor %}

{% if numbers %}<h2>Numbers</h2>
{{ table(numbers) }}{% endif %}

<h2>All runs</h2>
<details><summary>{{ num_runs }} runs, {{ runs | length }} numbers</summary>
{{ table(runs) }}</details>
{% else %}
{% if numbers %}{{ table(numbers) }}
{% else %}<p>This study asks no question: here are its runs.</p>{% endif %}
<h2>All runs</h2>
{{ table(runs) }}
{% endif %}
<details><summary>The runs' reports</summary>
{{ table(reports) }}</details>

<h2>Tables to paste</h2>
{% for title, text in pasted.items() %}
<details><summary>{{ title }}, Markdown</summary><pre>{{ text }}</pre></details>
{% endfor %}
"""


def write_study_page(
    path: Path,
    findings: Sequence[Finding],
    runs: Runs,
    reports: Mapping[str, str],
    numbers: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        findings: may be none.
        runs: what they measured.
        reports: run's name to `kind/key` of its report.
        numbers: the study's own.
    """
    estimates = [found for item in findings if (found := item.estimate())]
    of_runs = _number_table(runs)
    answers = {"Answers": markdown_table(answer_table(findings))} if findings else {}
    write_page(
        path,
        "detdiffusion study",
        _BODY,
        best=best_in_words(numbers),
        findings=findings,
        effects=effect_panels(estimates) if estimates else None,
        num_tested=sum(not math.isnan(item.p_value) for item in findings),
        numbers=own_numbers(numbers),
        runs=of_runs,
        num_runs=len(runs),
        holes={run: own["num_missing"] for run, own in runs.items() if "num_missing" in own},
        reports=[{"run": run, "report": reference} for run, reference in reports.items()],
        pasted=answers | {"Runs": markdown_table(of_runs)},
    )


def answer_table(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The answers, a row a question."""
    return [
        {
            "claim": item.claim,
            "verdict": item.verdict,
            "effect": item.effect_in_words,
            "in": item.unit,
            "corrected p": item.adjusted_p,
            "by seed": ", ".join(f"{value:+#.3g}" for value in item.differences) or "—",
            "seeds that would tell": item.seeds_needed,
        }
        for item in findings
    ]


def own_numbers(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A study's own numbers, a row each, with their intervals."""
    limits = {f"{name}{end}" for name in numbers for end in ("_low", "_high")}
    return [
        {
            "number": name,
            "": _with_interval(numbers, name, sign=name.startswith("gain_")) or shown_number(value),
        }
        for name, value in numbers.items()
        if name not in limits
    ]


def best_in_words(numbers: Mapping[str, Any]) -> str | None:
    """What the best arm of a study gains and is worth; None where it has none."""
    if "best_arm" not in numbers:
        return None
    run, _, arm = numbers["best_arm"].partition(": ")
    gain = _with_interval(numbers, "gain_best", sign=True) or shown_number(numbers["gain_best"])
    worth = float(numbers["worth_best"] or 0)
    more = "" if "synthetic_only" in arm else "more "
    like = f", as good as {worth:.0f} {more}real images" if 0 < worth < math.inf else ""
    return (
        f"{arm} of the run {run}, the best of the arms that were named: {gain} mAP over "
        f"{numbers['num_seeds']} seeds{like}. Being chosen by its gain flatters it."
    )


def _with_interval(numbers: Mapping[str, Any], name: str, *, sign: bool) -> str | None:
    found: list[Any] = [numbers.get(f"{name}{end}") for end in ("", "_low", "_high")]
    return None if None in found else format_interval(Interval(*map(float, found)), sign=sign)


def _number_table(runs: Runs) -> list[dict[str, Any]]:
    """A row a number and a column a run: there are more numbers than runs."""
    names = dict.fromkeys(name for numbers in runs.values() for name in numbers)
    return [
        {"number": name, **{run: shown_number(own.get(name)) for run, own in runs.items()}}
        for name in names
    ]
