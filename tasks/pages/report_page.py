"""The report of a run: one self-contained HTML page, and the same in short for a card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.layouts.gallery import SMALL, picture_uri
from models.metrics.arms import MAP, REAL
from models.training.metrics_file import Metrics
from tasks.pages import report_tables as tables
from tasks.pages.cards import markdown_table, narrow_table
from tasks.pages.html import write_page
from tasks.pages.plots import Estimate, interval_plot, loss_curves, recall_plot
from tasks.pages.report_tables import Rows


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture in a gallery.

    Attributes:
        image: uint8 (height, width, 3).
        caption: what stands under it.
        marked: whether it is to catch the eye.
    """

    image: np.ndarray
    caption: str
    marked: bool = False

    @property
    def uri(self) -> str:
        """Its content, for HTML."""
        return picture_uri(self.image)

    @property
    def small(self) -> bool:
        """Whether its pixels are meant to be seen."""
        return max(self.image.shape[:2]) <= SMALL


@dataclass(frozen=True, slots=True)
class Gallery:
    """Pictures under a heading.

    Attributes:
        text: what is to be seen.
        groups: pictures that stay side by side: four, two, or one.
    """

    title: str
    text: str
    groups: Sequence[Sequence[Picture]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a report tells, plain rows of the tables that the steps wrote.

    Attributes:
        preset: its name.
        changes: options that differ from the preset's.
        results: the headline numbers.
        answers: verdicts in words, that of the main contrast first.
        missing: detectors (detector/arm/seed) that there is no result of.
        warnings: what else limits the answer.
        arms: rows of `arms.parquet`.
        detectors: of `trainability.parquet`.
        contrasts: of `contrasts.parquet`.
        fidelity: of `fidelity.parquet`.
        scores: of `scores.parquet`.
        galleries: in order.
        training: metrics of the generator's training.
        data: tables about the data set, by title.
        steps: a row a step.
        whole: what the real validation images are tiles of, in words, if they are.
    """

    preset: str
    changes: Mapping[str, Any]
    results: Mapping[str, Any]
    answers: Sequence[str]
    missing: Sequence[str]
    warnings: Sequence[str]
    arms: Rows
    detectors: Rows
    contrasts: Rows
    fidelity: Rows
    scores: Rows
    galleries: Sequence[Gallery]
    training: Sequence[Metrics]
    data: Mapping[str, Rows]
    steps: Rows
    whole: str | None = None


_BODY = """
{% if preset == "smoke" %}<p class="first">A trial: every step ran. No number here means anything, for the
models are tiny and saw a few images.</p>
{% endif %}
{% for text in answers %}<p{% if loop.first %} class="first"{% endif %}>{{ text }}</p>
{% else %}<p class="first">No question was asked of the arms, or none has a result.</p>
{% endfor %}
{% for text in worth %}<p>{{ text }}</p>
{% endfor %}
{% for place in missing %}<p class="missing"><strong>No result of {{ place }}:</strong>
its training or its detections failed, and nothing here is about it.</p>
{% endfor %}
{% for text in warnings %}<p class="missing">{{ text }}</p>
{% endfor %}

<h2>Detectors trained on real and generated images</h2>
{% for detector, plots in arm_plots.items() %}
{% if loop.length > 1 %}<h3>Detector {{ detector }}</h3>{% endif %}
<div class="plots">{% for title, png in plots.items() %}{{ plot(png, title) }}{% endfor %}</div>
{% endfor %}
<p class="note">COCO's numbers on real validation images{% if whole %}, on {{ whole }}{% endif %}.
Points are means, lines their 95% intervals, grey dots single seeds. Intervals are Student's over the seeds;
with one seed a gain has one over the validation images (bootstrap), and a mean has none. All are of one
generator and one synthetic set; a study with seeds varies these too. A gain is coloured where it tells after
Holm's correction for all contrasts of a detector.</p>
{{ table(arms) }}
<p class="note">The arms of a detector have the same optimiser and schedule. Those called "equal exposure"
have more iterations, so that they see each real image as often as the arm real does; real-repeated has as
many as they. All others have as many iterations as real. Passes are over the training images, added passes
over the synthetic or spare ones.</p>
{% if sizes %}<h3>By size of objects</h3>
{{ table(sizes) }}
{% endif %}
{% for title, rows in classes.items() %}<details><summary>By class: {{ title }}</summary>
{{ table(rows) }}</details>
{% endfor %}

<h2>Fidelity</h2>
<p>How far the generated images are from the real ones of the same layouts. The floor is what other real
images score, as many of them if there are: less cannot be asked for.</p>
{% for text in notes %}<p><strong>{{ text }}</strong></p>
{% endfor %}
{{ table(fidelity) }}

<h2>Controllability</h2>
{% for text in recall_sentences %}<p>{{ text }}</p>
{% endfor %}
{% if recalls %}
<div class="plots">{{ plot(recalls, "recall of real and generated images by scorer") }}</div>
{% endif %}
{% for scorer, rows in scores.items() %}<h3>Scores by the {{ scorer }}</h3>
{{ table(rows) }}
{% endfor %}
<p class="note">Real and generated images are held against the same boxes. Protocol layout: the boxes that
were asked for, and all detections. Protocol lama: all that is labelled in the real image, and confident
detections. Detectors drop the weakest themselves. Intervals (95%) are over the layouts: how far others would
change the scores of this generator by this scorer.</p>

{% for gallery in galleries %}<h2>{{ gallery.title }}</h2>
<p>{{ gallery.text }}</p>
<div class="groups of-{{ gallery.groups[0] | length }}">
{% for group in gallery.groups %}<div class="group">{% for picture in group %}
<figure{% if picture.marked %} class="marked"{% endif %}>
<img src="{{ picture.uri }}" alt="{{ picture.caption }}"{% if picture.small %} class="small"{% endif %}>
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}</div>
{% endfor %}</div>
{% endfor %}

{% if curves %}<h2>Training of the generator</h2>
<div class="plots">{% for title, png in curves.items() %}{{ plot(png, title) }}{% endfor %}</div>
{% endif %}

<h2>What was run</h2>
{% if changes %}<p>Preset {{ preset }}, with these options of its own:</p>
{{ table(changes) }}
{% else %}<p>Preset {{ preset }} as it is.</p>
{% endif %}
{% for title, rows in data.items() if rows %}<h3>{{ title }}</h3>
{{ table(rows) }}
{% endfor %}
<details><summary>{{ steps | length }} steps, {{ minutes }} minutes of work</summary>
{{ table(steps) }}</details>

{% for title, rows in published.items() %}
{% if loop.first %}<h2>Published numbers beside these</h2>
<p>Rows marked as published are the paper's, not measured here. They compare with ours only where data,
detector, schedule and number of images are the paper's.</p>
{% endif %}
<h3>{{ title }}</h3>
{{ table(rows) }}
{% endfor %}

<h2>Tables to paste</h2>
{% for title, text in pasted.items() %}
<details><summary>{{ title }}, Markdown</summary><pre>{{ text }}</pre></details>
{% endfor %}
<details><summary>All numbers of <code>detdiffusion report --json</code></summary>
{{ table(results) }}</details>
"""


def write_report(path: Path, report: Report) -> None:
    """Write the page."""
    shown = _tables(report)
    recalls = tables.recalls(report.scores)
    write_page(
        path,
        "detdiffusion report",
        _BODY,
        answers=[f"{text}." for text in report.answers],
        worth=tables.worth_sentences(report.arms),
        missing=report.missing,
        warnings=report.warnings,
        arm_plots=_arm_plots(report),
        arms=shown["Arms"],
        sizes=tables.size_table(report.contrasts),
        classes=tables.class_tables(report.contrasts),
        fidelity=shown["Fidelity"],
        notes=tables.fidelity_notes(report.fidelity),
        scores=tables.score_tables(report.scores),
        recall_sentences=tables.recall_sentences(report.scores),
        recalls=recall_plot(recalls) if recalls else None,
        galleries=[gallery for gallery in report.galleries if gallery.groups],
        curves=loss_curves(report.training),
        preset=report.preset,
        changes=[{"option": name, "value": str(v)} for name, v in report.changes.items()],
        data=report.data,
        steps=report.steps,
        whole=report.whole,
        minutes=round(sum(row["seconds"] for row in report.steps) / 60, 1),
        published=_published(report),
        pasted={title: markdown_table(rows) for title, rows in shown.items()},
        results=[
            {"number": name, "value": tables.shown_number(value)}
            for name, value in report.results.items()
        ],
    )


def card_sections(report: Report) -> list[str]:
    """The same in short, as Markdown."""
    shown = _tables(report)
    first, *others = [f"{text}." for text in report.answers] or ["No question has a result."]
    return [
        f"**{first}**",
        *others,
        *tables.worth_sentences(report.arms),
        *(
            f"**No result of {place}: its training or its detections failed.**"
            for place in report.missing
        ),
        *(f"**{text}**" for text in report.warnings),
        f"## Arms\n\n{narrow_table(shown['Arms'])}",
        *([f"On {report.whole}."] if report.whole else []),
        f"## Fidelity\n\n{narrow_table(shown['Fidelity'])}",
        *tables.fidelity_notes(report.fidelity),
        "## Controllability",
        *tables.recall_sentences(report.scores),
    ]


def _tables(report: Report) -> dict[str, tables.Table]:
    """Those that the page and the card have, and that people paste elsewhere."""
    return {
        "Arms": tables.arm_table(report.arms, report.detectors),
        "Fidelity": tables.fidelity_table(report.fidelity),
        "Detection scores": tables.score_table(report.scores),
    }


def _arm_plots(report: Report) -> dict[str, dict[str, bytes]]:
    """By detector the arms' scores, and their gains over real where there are any."""
    plots: dict[str, dict[str, bytes]] = {}
    for detector, arms in tables.of_detectors(report.arms).items():
        own = plots[detector] = {}
        if scores := _scores(arms, report.detectors):
            own["mAP by arm"] = interval_plot(scores, "mAP")
        if gains := _gains(arms, report.detectors):
            own["gain over real by arm"] = interval_plot(gains, "gain in mAP over real", gains=True)
    return plots


def _scores(arms: Rows, detectors: Rows) -> list[Estimate]:
    return [
        Estimate(row["arm"], found, list(tables.by_seed(detectors, row).values()))
        for row in arms
        if (found := tables.interval(row, MAP))
    ]


def _gains(arms: Rows, detectors: Rows) -> list[Estimate]:
    real = next((tables.by_seed(detectors, row) for row in arms if row["arm"] == REAL), {})
    scores = [tables.by_seed(detectors, row) for row in arms]
    return [
        Estimate(
            row["arm"],
            found,
            [own[seed] - real[seed] for seed in sorted(own.keys() & real.keys())],
            verdict=row["verdict"] or "cannot tell",
        )
        for row, own in zip(arms, scores, strict=True)
        if (found := tables.interval(row, "gain"))
    ]


def _published(report: Report) -> dict[str, tables.Table]:
    if not report.preset.startswith("coco"):
        return {}
    return {
        "FID at 256 × 256 pixels": tables.published_fidelity(report.preset, report.fidelity),
        "Detectors on COCO val2017, points": tables.published_trainability(
            report.preset, report.arms
        ),
    }
