"""Kind `report`: one self-contained page about a run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.identity import KEY_DIGITS
from data.artifacts.manifest import Manifest
from data.attributes.calibration import easiest_and_hardest, scored_things
from data.attributes.options import ATTRIBUTES_NAME
from data.coco.image_sets import SyntheticSet, whole_images
from data.layouts.gallery import SMALL, contact_sheet, crop, draw_boxes, page_picture
from data.layouts.layout import PerceptionAttribute, evenly_spaced, few_layouts
from data.layouts.options import POLICIES, AttributePolicy
from data.vocabulary.boxes import xywh_to_xyxy
from data.vocabulary.images import read_square
from data.vocabulary.tables import Dataset, box_array
from models.metrics.coco_metrics import CocoTruth, annotations_by_image, boxes_found, read_truth
from models.metrics.options import MeasureOptions, ReportOptions
from models.training.metrics_file import METRICS_NAME, read_metrics
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.kinds.compare import ARMS_NAME, CONTRASTS_NAME, TRAINABILITY_NAME
from tasks.kinds.measure import COPIES_NAME, FIDELITY_NAME, SCORES_NAME
from tasks.pages.cards import markdown_picture, write_card
from tasks.pages.detections import DETECTIONS_NAME
from tasks.pages.report_page import Gallery, Picture, Report, card_sections, write_report
from tasks.pages.report_tables import blind_judges

_LAYOUTS = 8
"""Shown on the page, real and generated."""

_CARD_LAYOUTS, _CARD_SIDE = 6, 96
"""On the card: layouts, and the side of an image in pixels."""

_OBJECTS = 8
"""Easiest, and as many hardest ones."""

_MISSED, _COPIES = 4, 4
"""Of each set."""

_WEIGHTS = ("detector/model.safetensors", "detector/model.weights")
"""In a detector's artifact."""

Rows = list[dict[str, Any]]
Sets = Mapping[AttributePolicy, SyntheticSet]
Context = StepContext[ReportOptions]


@dataclass(frozen=True, slots=True)
class _Shown:
    """An image and the boxes that were asked for in it.

    Attributes:
        boxes: in fractions of the image's sides, (num_boxes, 4).
        attributes: one a box.
    """

    path: Path
    boxes: np.ndarray
    attributes: Sequence[PerceptionAttribute | None]

    def draw(self, image: np.ndarray, line: int) -> np.ndarray:
        """Draw the boxes on the image, of any size."""
        return draw_boxes(image, self.boxes, self.attributes, line)


def run(context: Context) -> Summary:
    """Write `report.html`, and a card that says the same in short."""
    dataset = Dataset(context.inputs["ingest"])
    folders = context.many("sets")
    sets = {name: SyntheticSet(folders[name]) for name in POLICIES if name in folders}
    layouts = _layouts(dataset, sets)
    report = _report(context, _galleries(context, dataset, sets, layouts))
    write_report(context.out / "report.html", report)
    write_card(context.out, "Evaluation", *card_sections(report), *_card_picture(layouts))
    return {"results": report.results, "answers": report.answers}


def _report(context: Context, galleries: Sequence[Gallery]) -> Report:
    scores = _rows(context, "measures", SCORES_NAME)
    whole = whole_images(Dataset(context.inputs["ingest"]))
    measures, comparison = context.manifest("measures"), context.manifest("comparison")
    return Report(
        preset=context.options.preset,
        changes=context.options.changes,
        results={**measures.summary["results"], **comparison.summary["results"]},
        answers=comparison.summary["answers"],
        missing=comparison.summary["missing"],
        warnings=[*_warnings(context), *(f"{text}." for text in blind_judges(scores))],
        arms=_rows(context, "comparison", ARMS_NAME),
        detectors=_rows(context, "comparison", TRAINABILITY_NAME),
        contrasts=_rows(context, "comparison", CONTRASTS_NAME),
        fidelity=_rows(context, "measures", FIDELITY_NAME),
        scores=scores,
        galleries=galleries,
        training=read_metrics(context.inputs["generator"] / METRICS_NAME),
        data=_data_tables(context),
        steps=_step_rows(context),
        whole=str(whole) if whole else None,
    )


def _rows(context: Context, name: str, table: str) -> Rows:
    return pq.read_table(context.inputs[name] / table).to_pylist()


def _warnings(context: Context) -> list[str]:
    """Whether the protocol leaves few of the validation layouts, and the judge is not independent."""
    drawn = [context.manifest(f"sets/{name}").summary["layouts"] for name in context.many("sets")]
    num_images = len(Dataset(context.inputs["ingest"]).split_images("val"))
    found = {few_layouts(item["images"], num_images) for item in drawn}
    warnings = [
        f"Mind that {text}: what is said of generated images is about these alone. More are left by other "
        "synthesize.val_layouts, or other layouts of the run."
        for text in found
        if text
    ]
    if _gave_attributes(context):
        warnings.append(
            "Mind that what is called the independent detector is the one that gave the attributes: what it "
            "does not find is what it calls hard. Give another one in evaluate.scorer."
        )
    return warnings


def _gave_attributes(context: Context) -> bool:
    """Whether the scorer has the weights of a detector that gave attributes."""
    steps = {step.reference: step for step in context.ancestors()}
    scores = [context.manifest(f"scores/{name}").reference for name in context.many("scores")]
    of_attributes = context.manifest("attributes").inputs.values()
    return bool(_weights(steps, scores) & _weights(steps, of_attributes))


def _weights(steps: Mapping[str, Manifest], detections: Iterable[str]) -> set[str]:
    """Digests of the weights of those who made detections, where they are still there."""
    makers = [steps[name].inputs.get("detector", "") for name in detections if name in steps]
    return {
        record.sha256
        for maker in makers
        if maker in steps
        for name, record in steps[maker].files.items()
        if name in _WEIGHTS
    }


def _data_tables(context: Context) -> dict[str, Rows]:
    """Counts of the data set, what was left out of it, which layouts were drawn, and what steps warned of."""
    summary = context.manifest("ingest").summary
    counts = [{"split": name, **row} for name, row in summary["counts"].items()]
    drawn = [context.manifest(f"sets/{name}").summary for name in context.many("sets")]
    return {
        "Data": _filled(counts),
        "Left out of the data, or mended": _filled(summary["refused"]),
        "Validation layouts left and left out": _filled([item["layouts"] for item in drawn[:1]]),
        "What the steps warned of": [
            {"step": step.kind, "warning": text}
            for step in context.ancestors()
            for text in step.summary.get(WARNINGS, ())
        ],
    }


def _filled(rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Rows with the same columns."""
    kept = list(rows)
    names = dict.fromkeys(name for row in kept for name in row)
    return [{name: row.get(name) for name in names} for row in kept]


def _step_rows(context: Context) -> Rows:
    """Every step with its cost, what it was made from, and what it is to those made from it."""
    steps = context.ancestors()
    users = [step.inputs for step in steps]
    users.append({name: context.manifest(name).reference for name in context.inputs})
    return [
        {
            "step": f"{step.kind} {step.key[:KEY_DIGITS]}",
            "seconds": round(step.seconds, 1),
            "peak memory, GB": round(step.peak_memory_bytes / 1e9, 2),
            "device": step.environment.get("device"),
            "serves as": ", ".join(_roles(step, users)),
            "made from": ", ".join(
                f"{name}: {reference.partition('/')[2][:KEY_DIGITS]}"
                for name, reference in step.inputs.items()
            ),
        }
        for step in steps
    ]


def _roles(step: Manifest, users: Iterable[Mapping[str, str]]) -> list[str]:
    """The names by which a step's artifact is an input of others."""
    return sorted(
        {name for inputs in users for name, used in inputs.items() if used == step.reference}
    )


def _layouts(dataset: Dataset, sets: Sets) -> list[dict[str, _Shown]]:
    """Layouts that all sets have, evenly spread: the real image, then those of the policies.

    The real image has the boxes of the first set, `origin`, with the attributes as measured.
    """
    images = {name: _shown_images(item) for name, item in sets.items()}
    if not images:
        return []
    real = dict(dataset.image_paths("val"))
    first = next(iter(images.values()))
    common = [key for key in sorted(first) if all(key in own for own in images.values())]
    return [
        {"real": replace(first[key], path=real[key])}
        | {name: own[key] for name, own in images.items()}
        for key in evenly_spaced(common, _LAYOUTS)
    ]


def _shown_images(synthetic: SyntheticSet) -> dict[int, _Shown]:
    """The first image of each layout with its boxes, by the real image's id."""
    truth = read_truth(synthetic.instances)
    sizes = {item["id"]: (item["width"], item["height"]) for item in truth["images"]}
    asked = annotations_by_image(truth)
    return {
        row["source_image_id"]: _Shown(
            synthetic.image_folder / row["file_name"],
            _normalized(asked[row["image_id"]], sizes[row["image_id"]]),
            [_attribute(item) for item in asked[row["image_id"]]],
        )
        for row in synthetic.provenance.to_pylist()
        if row["repeat"] == 0
    }


def _normalized(annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    boxes = np.array([item["bbox"] for item in annotations], np.float64).reshape(-1, 4)
    return xywh_to_xyxy(boxes) / np.tile(size, 2)


def _attribute(annotation: Mapping[str, Any]) -> PerceptionAttribute | None:
    value = annotation["attribute"]
    return None if value is None else PerceptionAttribute(value)


def _galleries(
    context: Context, dataset: Dataset, sets: Sets, layouts: Sequence[Mapping[str, _Shown]]
) -> list[Gallery]:
    return [
        Gallery(
            "The same layouts, real and generated",
            "With the boxes that were asked for: green easy, red hard; in real images as measured.",
            [[Picture(_drawn(item), name) for name, item in shown.items()] for shown in layouts],
        ),
        *_object_galleries(context, dataset),
        _missed_gallery(context, dataset, sets),
        _copy_gallery(context, dataset, sets),
    ]


def _drawn(shown: _Shown) -> np.ndarray:
    image = page_picture(shown.path)
    return shown.draw(image, 1 if max(image.shape[:2]) <= SMALL else 2)


def _card_picture(layouts: Sequence[Mapping[str, _Shown]]) -> Iterator[str]:
    """Rows real and one for each set, columns the same layouts."""
    if layouts:
        chosen = evenly_spaced(layouts, _CARD_LAYOUTS)
        pictures = [
            [item.draw(read_square(item.path, _CARD_SIDE), 1)
             for item in (shown[name] for shown in chosen)]
            for name in layouts[0]
        ]  # fmt: skip
        yield f"## The same layouts: {', '.join(layouts[0])} (green easy, red hard)"
        yield markdown_picture(contact_sheet(pictures), "the same layouts, real and generated")


def _object_galleries(context: Context, dataset: Dataset) -> Iterator[Gallery]:
    """Crops of the easiest and of the hardest training objects."""
    attributes = pq.read_table(context.inputs["attributes"] / ATTRIBUTES_NAME)
    scored = scored_things(dataset, attributes, "train")
    paths = dict(dataset.image_paths("train"))
    for title, rows in zip(
        ("Easiest", "Hardest"), easiest_and_hardest(scored, _OBJECTS), strict=True
    ):
        chosen = scored.take(pa.array(rows))
        yield Gallery(
            f"{title} real objects",
            "Of the training images, by IoU × score of the detection that they were matched with.",
            [
                [Picture(crop(paths[row["image_id"]], box, SMALL), _ease(dataset, row))]
                for row, box in zip(chosen.to_pylist(), box_array(chosen), strict=True)
            ],
        )


def _ease(dataset: Dataset, row: Mapping[str, Any]) -> str:
    name = dataset.things[row["category_id"]]
    if row["matched_score"] is None:
        return f"{name}: not found"
    return f"{name}: IoU {row['best_iou']:.2f}, score {row['matched_score']:.2f}"


def _missed_gallery(context: Context, dataset: Dataset, sets: Sets) -> Gallery:
    """Generated objects that the independent scorer did not find, the largest ones."""
    limits = MeasureOptions.model_validate(context.manifest("measures").options)
    found = context.many("scores")
    groups, counts = [], []
    for name, item in sets.items():
        if name in found:
            truth = read_truth(item.instances)
            missed = _missed(truth, pq.read_table(found[name] / DETECTIONS_NAME), limits)
            counts.append(f"{name} {len(missed)} of {len(truth['annotations'])}")
            shown = islice(_missed_pictures(dataset, item, truth, missed), _MISSED)
            groups += [
                [Picture(image, words if words.startswith(name) else f"{name}: {words}")]
                for image, words in shown
            ]
    return Gallery(
        "Failures: generated objects that the independent detector did not find",
        f"No detection of their class has score {limits.recall_score_threshold:g} and IoU "
        f"{limits.recall_iou_threshold:g} at least. Not found: {'; '.join(counts)}. "
        "These are the largest of each set, one an image.",
        groups,
    )


def _missed(truth: CocoTruth, found: pa.Table, limits: MeasureOptions) -> list[dict[str, Any]]:
    """Annotations without a detection of their class at the limits."""
    wanted = truth["annotations"]
    boxes = xywh_to_xyxy(np.array([item["bbox"] for item in wanted], np.float64).reshape(-1, 4))
    image_ids, category_ids = (
        np.array([item[name] for item in wanted], np.int64) for name in ("image_id", "category_id")
    )
    is_found = boxes_found(
        boxes,
        image_ids,
        category_ids,
        found,
        score_threshold=limits.recall_score_threshold,
        iou_threshold=limits.recall_iou_threshold,
    )
    return [wanted[row] for row in np.flatnonzero(~is_found)]


def _missed_pictures(
    dataset: Dataset, synthetic: SyntheticSet, truth: CocoTruth, missed: Sequence[dict[str, Any]]
) -> Iterator[tuple[np.ndarray, str]]:
    """One of each image with what was asked for, that of the largest missed object first."""
    sizes = {item["id"]: (item["width"], item["height"]) for item in truth["images"]}
    paths, seen = dict(synthetic.image_set.images), set()
    for item in sorted(missed, key=lambda item: -item["area"]):
        image_id, attribute = item["image_id"], item["attribute"]
        if image_id not in seen:
            seen.add(image_id)
            image = page_picture(paths[image_id])
            box = _normalized([item], sizes[image_id])
            words = " ".join(filter(None, (attribute, dataset.things[item["category_id"]])))
            yield draw_boxes(image, box, [_attribute(item)], 2), words


def _copy_gallery(context: Context, dataset: Dataset, sets: Sets) -> Gallery:
    """Generated images beside the training images nearest to them."""
    real = dict(dataset.image_paths("train"))
    copies = _rows(context, "measures", COPIES_NAME)
    groups = []
    for name, item in sets.items():
        generated = dict(item.image_set.images)
        pairs = [row for row in copies if row["images"] == name]
        for row in sorted(pairs, key=lambda row: row["distance"])[:_COPIES]:
            near = row["distance"] <= row["limit"]
            side = "within" if near else "beyond"
            words = f"{name}: distance {row['distance']:.3g}, {side} the limit {row['limit']:.3g}"
            groups.append(
                [
                    Picture(page_picture(generated[row["image_id"]]), words, marked=near),
                    Picture(page_picture(real[row["real_image_id"]]), "nearest training image"),
                ]
            )
    return Gallery(
        "Likeliest copies of training images",
        "Generated images and the training images nearest to them in the extractor's features. Marked "
        "are those within the limit, where other real images hardly ever are.",
        groups,
    )
