"""Kind `compare`: what the arms' detectors score on real validation images, and what differences tell."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.artifacts.manifest import Manifest
from data.coco.image_sets import whole_images
from data.vocabulary.tables import Dataset, write_table
from models.metrics.arms import MAP, REAL, ArmResult, Bootstrap, Contrast, arm_worth, compare
from models.metrics.coco_metrics import coco_results, read_truth
from models.metrics.comparison import student_interval
from models.metrics.image_bootstrap import (
    MapDraws,
    bootstrap_difference,
    bootstrap_map,
    difference_p_value,
    match_detections,
)
from models.metrics.interval import Interval, format_interval
from models.metrics.options import MAIN, ComparisonOptions
from models.metrics.ruler import Worth
from models.metrics.tiles import join_tiles
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import narrow_table, write_card
from tasks.pages.detections import COCO_METRICS_NAME, DETECTIONS_NAME
from tasks.pages.numbers import finite, number_name
from tasks.pages.report_tables import CLASS_PREFIX

TRAINABILITY_NAME, ARMS_NAME, CONTRASTS_NAME = (
    "trainability.parquet",
    "arms.parquet",
    "contrasts.parquet",
)
"""Tables of single detectors, of arms over their seeds, and of differences."""

Rows = list[dict[str, Any]]
Context = StepContext[ComparisonOptions]


def run(context: Context) -> Summary:
    """Write the tables of detectors, arms and contrasts."""
    results = _results(context)
    detectors = list(dict.fromkeys(item.detector for item in results))
    contrasts: list[Contrast] = []
    arms: Rows = []
    numbers: dict[str, Any] = {}
    bootstrap = _bootstrap(context)
    for detector in sorted(detectors, key=lambda name: name != MAIN):
        own = [item for item in results if item.detector == detector]
        found = compare(own, context.options.contrasts, bootstrap)
        contrasts += found
        worths = {arm: arm_worth(own, arm) for arm in dict.fromkeys(r.arm for r in own)}
        arms += [_arm_row(own, arm, found, value) for arm, value in worths.items()]
        numbers |= _numbers(own, found, worths)
    write_table(
        pa.Table.from_pylist([_row(item) for item in results]), context.out / TRAINABILITY_NAME
    )
    write_table(pa.Table.from_pylist(arms), context.out / ARMS_NAME)
    write_table(_contrast_table(contrasts), context.out / CONTRASTS_NAME)
    answers = [answer(item) for item in contrasts if item.verdict]
    whole = whole_images(Dataset(context.inputs["ingest"]))
    write_card(
        context.out,
        "Comparison of arms",
        *(f"{text}." for text in answers),
        *(f"**No result of {place}: its training or its detections failed.**"
          for place in context.options.missing),
        *([f"On {whole}."] if whole else []),
        narrow_table([_shown(row) for row in arms]),
    )  # fmt: skip
    missing = list(context.options.missing)
    if missing:
        numbers["num_missing"] = len(missing)
    return {"results": numbers, "answers": answers, "missing": missing}


def answer(contrast: Contrast) -> str:
    """A contrast's verdict in words."""
    gain = format_interval(contrast.gain, sign=True)
    seeds = (
        "1 seed, interval over images"
        if len(contrast.seeds) == 1
        else f"{len(contrast.seeds)} seeds"
    )
    detector = "" if contrast.detector == MAIN else f" with {contrast.detector}"
    text = f"{contrast.of} against {contrast.versus}{detector}: {gain} mAP over {seeds}: "
    if contrast.verdict != "cannot tell":
        alone = " with this seed, others may say otherwise" if len(contrast.seeds) == 1 else ""
        return f"{text}it {contrast.verdict}{alone}"
    if len(contrast.seeds) == 1:
        return f"{text}cannot tell at this size; one seed does not say how many would"
    if contrast.seeds_needed is None:
        return f"{text}cannot tell at this size, nor with a thousand seeds"
    return f"{text}cannot tell at this size; about {contrast.seeds_needed} seeds would tell"


def _results(context: Context) -> list[ArmResult]:
    """Every detector, by arm in order of names, then by seed."""
    found = []
    for place, folder in context.many("found").items():
        detector, arm, seed = place.split("/")
        trained = context.manifest(f"trained/{place}")
        metrics = json.loads((folder / COCO_METRICS_NAME).read_text())
        classes = metrics.pop("classes")
        metrics |= {f"{CLASS_PREFIX}{name}": value for name, value in classes.items()}
        found.append(_result(detector, arm, int(seed), trained, metrics))
    return sorted(found, key=lambda item: (item.arm != REAL, item.arm, item.seed))


def _result(
    detector: str, arm: str, seed: int, trained: Manifest, metrics: Mapping[str, float | None]
) -> ArmResult:
    images = trained.summary["images"]
    num_real = sum(count for what, count in images.items() if what.endswith("real"))
    num_pseudo_labelled = images.get("pseudo-labelled", 0)
    passes = trained.summary["passes"]
    return ArmResult(
        detector=detector,
        arm=arm,
        seed=seed,
        num_real=num_real,
        num_synthetic=sum(images.values()) - num_real - num_pseudo_labelled,
        num_pseudo_labelled=num_pseudo_labelled,
        iterations=trained.summary["iterations"],
        passes=passes if "real" in images else None,
        added_passes=trained.summary.get("added passes", passes)
        if images.keys() - {"real"}
        else None,
        augmentation=trained.options["augmentation"],
        metrics=metrics,
    )


def _bootstrap(context: Context) -> Bootstrap:
    """Difference of two detectors over draws of the validation images, made once for each."""
    dataset = Dataset(context.inputs["ingest"])
    whole = whole_images(dataset)
    instances = whole.instances if whole else dataset.instances_file("val")
    truth = cache(lambda: read_truth(instances))

    @cache
    def draws(place: str) -> MapDraws:
        image_ids = [item["id"] for item in truth()["images"]]
        found = pq.read_table(context.inputs[f"found/{place}"] / DETECTIONS_NAME)
        found = join_tiles(found, whole.tiles) if whole else found
        matched = match_detections(truth(), coco_results(found, image_ids), image_ids)
        return bootstrap_map(matched, dataset.whole_groups("val"))

    def difference(of: ArmResult, versus: ArmResult) -> tuple[Interval, float]:
        pair = [draws(f"{item.detector}/{item.arm}/{item.seed}") for item in (of, versus)]
        return bootstrap_difference(*pair), difference_p_value(*pair)

    return difference


def _row(item: ArmResult) -> dict[str, Any]:
    row = asdict(item)
    return {**row, **row.pop("metrics")}


def _arm_row(
    results: Sequence[ArmResult], arm: str, contrasts: Iterable[Contrast], value: Worth | None
) -> dict[str, Any]:
    """An arm's mean numbers, and its gain over real images."""
    own = [item for item in results if item.arm == arm]
    example, interval = own[0], student_interval([item.map for item in own])
    names = [name for name in example.metrics if not name.startswith(CLASS_PREFIX)]
    asked = (MAP, arm, REAL)
    gain = next((c for c in contrasts if (c.metric, c.of, c.versus) == asked), None)
    return {
        "detector": example.detector,
        "arm": arm,
        "seeds": len(own),
        "real images": example.num_real,
        "synthetic images": example.num_synthetic,
        "pseudo-labelled images": example.num_pseudo_labelled,
        "iterations": example.iterations,
        "passes": example.passes,
        "added passes": example.added_passes,
        "map_low": interval.low,
        "map_high": interval.high,
        **{name: _mean(item.metrics[name] for item in own) for name in names},
        "gain": gain.gain.value if gain else None,
        "gain_low": gain.gain.low if gain else None,
        "gain_high": gain.gain.high if gain else None,
        "interval over": gain.over if gain else None,
        "adjusted p": gain.adjusted_p if gain else None,
        "verdict": gain.verdict if gain else None,
        "worth": value.real_images.value if value else None,
        "worth_low": value.real_images.low if value else None,
        "worth_high": value.real_images.high if value else None,
        "exchange rate": value.exchange_rate.value if value else None,
        "exchange rate, low": value.exchange_rate.low if value else None,
        "exchange rate, high": value.exchange_rate.high if value else None,
        "worth in words": value.words if value else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's row as a card has room for it."""
    gain = row["gain"] if row["gain"] is not None else math.nan
    interval = Interval(row["map"], row["map_low"], row["map_high"])
    shown = {name: row[name] for name in ("detector", "arm", "seeds", "real images", "synthetic images",
                                          "pseudo-labelled images", "iterations", "passes",
                                          "added passes")}  # fmt: skip
    return {
        **shown,
        "mAP": format_interval(interval),
        "AP50": row["map50"],
        "AP75": row["map75"],
        "gain": "—" if row["gain"] is None
        else format_interval(Interval(gain, row["gain_low"], row["gain_high"]), sign=True),
        "verdict": row["verdict"],
        "worth": row["worth in words"],
    }  # fmt: skip


def _contrast_table(contrasts: Sequence[Contrast]) -> pa.Table:
    rows = []
    for item in contrasts:
        row = asdict(item)
        gain = row.pop("gain")
        rows.append({**row, "gain": gain["value"], "low": gain["low"], "high": gain["high"]})
    return pa.Table.from_pylist(rows)


def _numbers(
    results: Sequence[ArmResult], contrasts: Iterable[Contrast], worths: Mapping[str, Worth | None]
) -> dict[str, Any]:
    """The headline numbers of one detector, flat, in front of them its name if it is not the main one.

    Seeds of an arm, and of its gain, are named where it lacks some that others have; what is not finite is
    text.
    """
    detector = results[0].detector
    prefix = "" if detector == MAIN else f"{number_name(detector)}_"
    num_seeds = len({item.seed for item in results})
    numbers: dict[str, Any] = {"num_seeds": num_seeds}
    for arm, value in worths.items():
        name, own = number_name(arm), [item for item in results if item.arm == arm]
        numbers[f"map_{name}"] = _mean(item.map for item in own)
        numbers[f"worth_{name}"] = value.real_images.value if value else None
        if len(own) < num_seeds:
            numbers[f"num_seeds_{name}"] = len(own)
    mixed = [arm for policy in ("hard", "easy", "origin") for arm in worths
             if arm.partition(",")[0] == f"real+{policy}"]  # fmt: skip
    if mixed:
        numbers["map_real_plus_synthetic"] = numbers[f"map_{number_name(mixed[0])}"]
    for item in contrasts:
        if item.metric == MAP and item.versus == REAL:
            name = f"gain_{number_name(item.of)}"
            limits = {"": item.gain.value, "_low": item.gain.low, "_high": item.gain.high}
            numbers |= {f"{name}{end}": limit for end, limit in limits.items()}
            if len(item.seeds) < num_seeds:
                numbers[f"num_seeds_{name}"] = len(item.seeds)
    return {f"{prefix}{name}": finite(value) for name, value in numbers.items()}
