"""The tables and sentences of a report, made of the rows of its steps' tables."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from models.metrics.arms import MAP, REAL
from models.metrics.comparison import student_interval
from models.metrics.interval import Interval, format_interval, format_limits
from models.metrics.options import DETECTOR, SCORER

FLOOR = "floor"
"""Other real images, held against real ones."""

CLASS_PREFIX = "class: "
"""Before a class's name among the metrics of a contrast."""

UNDEFINED = "undefined: fewer images than features, see KID"
"""Of a Fréchet distance."""

Row = Mapping[str, Any]
Rows = Sequence[Row]
Table = list[dict[str, Any]]

_INCEPTION = "InceptionV3"
"""The extractor by which alone a Fréchet distance is the FID."""

_SIZES = {"map_small": "small", "map_medium": "medium", "map_large": "large"}

_SCORERS = {
    SCORER: "independent detector",
    DETECTOR: "detector that gave the attributes",
}
"""What the judges of a run's own are called; a user's go by the user's name."""

_NEIGHBOURHOODS = ("precision", "recall", "density", "coverage")

DISTANCES = ("frechet_distance", "kid", *_NEIGHBOURHOODS)
"""Numbers of generated images against real ones; each has `_low` and `_high` beside it."""

SCORES = ("recall", "map", "map50", "map75")
"""Numbers of detections in images, likewise."""

_PUBLISHED = "published (DetDiffusion, CVPR 2024)"


def interval(row: Row, name: str) -> Interval | None:
    """The number of a column with the limits that stand in columns beside it; None where it is not known."""
    if row[name] is None:
        return None
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"])


def signed(value: Interval | None) -> str | None:
    """A difference with its sign."""
    return None if value is None else format_interval(value, sign=True)


def gain(contrast: Row) -> Interval:
    """The difference of a contrast."""
    return Interval(contrast["gain"], contrast["low"], contrast["high"])


def of_detectors(rows: Rows) -> dict[str, Rows]:
    """Rows by their detector, in order."""
    names = dict.fromkeys(row["detector"] for row in rows)
    return {name: [row for row in rows if row["detector"] == name] for name in names}


def by_seed(detectors: Rows, arm: Row, metric: str = MAP) -> dict[int, float]:
    """What the detectors of an arm score, by seed."""
    place = (arm["detector"], arm["arm"])
    own = [row for row in detectors if (row["detector"], row["arm"]) == place]
    return {row["seed"]: row[metric] for row in own if row[metric] is not None}


def arm_table(arms: Rows, detectors: Rows) -> Table:
    """What people want to see of the arms.

    Args:
        arms: rows of `arms.parquet`.
        detectors: rows of `trainability.parquet`.
    """
    several = len(of_detectors(arms)) > 1
    return [
        {
            "arm": f"{row['arm']} ({row['detector']})" if several else row["arm"],
            "mAP": interval(row, MAP),
            "gain over real": signed(interval(row, "gain")),
            "interval over": row["interval over"],
            "verdict": row["verdict"],
            "AP50": _mean(by_seed(detectors, row, "map50")),
            "AP75": _mean(by_seed(detectors, row, "map75")),
            "seeds": row["seeds"],
            "real images": row["real images"],
            "synthetic images": row["synthetic images"],
            "pseudo-labelled images": row["pseudo-labelled images"],
            "iterations": row["iterations"],
            "passes": row["passes"],
            "added passes": row["added passes"],
            "worth in real images": _worth(row),
        }
        for row in arms
    ]


def _worth(arm: Row) -> str | None:
    """The gain in real images with its interval, which is a result where it is infinite too."""
    found = [arm[f"worth{end}"] for end in ("", "_low", "_high")]
    if any(value is None or math.isnan(value) for value in found):
        return None
    return format_limits(Interval(*found), sign=True, most_decimals=0)


def _mean(values: Mapping[int, float]) -> str | None:
    """A mean over seeds with no more digits than its interval allows."""
    return _rounded(student_interval(list(values.values()))) if values else None


def _rounded(value: Interval) -> str:
    return format_interval(value).partition(" ")[0]


def worth_sentences(arms: Rows) -> list[str]:
    """What the images of each arm are worth in real ones; the ruler's own arms are worth themselves."""
    ruler = ("real x ", "more-real")
    return [
        f"{row['arm']}{_with(row['detector'], arms)}: {row['worth in words']}."
        for row in arms
        if row["worth in words"] and row["arm"] != REAL and not row["arm"].startswith(ruler)
    ]


def _with(detector: str, arms: Rows) -> str:
    """Which detector is meant, where that is not the first one."""
    return "" if detector == arms[0]["detector"] else f" with {detector}"


def size_table(contrasts: Rows) -> Table:
    """The contrasts by COCO's sizes of objects."""
    return [
        {
            "contrast": _title(row, contrasts),
            "objects": _SIZES[row["metric"]],
            "first arm": _to(row["of_mean"], gain(row)),
            "second arm": _to(row["versus_mean"], gain(row)),
            "gain": signed(gain(row)),
        }
        for row in contrasts
        if row["metric"] in _SIZES
    ]


def class_tables(contrasts: Rows) -> dict[str, Table]:
    """By contrast its differences in AP, a row a class."""
    tables: dict[str, Table] = {}
    for row in contrasts:
        if row["metric"].startswith(CLASS_PREFIX):
            tables.setdefault(_title(row, contrasts), []).append(
                {
                    "class": row["metric"].removeprefix(CLASS_PREFIX),
                    row["of"]: _to(row["of_mean"], gain(row)),
                    row["versus"]: _to(row["versus_mean"], gain(row)),
                    "gain": signed(gain(row)),
                }
            )
    return tables


def _title(contrast: Row, contrasts: Rows) -> str:
    return f"{contrast['of']} against {contrast['versus']}{_with(contrast['detector'], contrasts)}"


def _to(value: float, difference: Interval) -> str:
    """A mean with as many digits as a difference of it has."""
    reach = (difference.high - difference.low) / 2
    return _rounded(Interval(value, value - reach, value + reach))


def distance_name(row: Row) -> str:
    """What a Fréchet distance by a row's extractor may be called."""
    return "FID" if row["extractor"] == _INCEPTION else f"Fréchet distance ({row['extractor']})"


def fidelity_table(rows: Rows) -> Table:
    """Distances to the real images of the layouts; the last columns are what they depend on."""
    known = {"images", "extractor", "num_images", "num_real", "copies"}
    known |= {f"{name}{end}" for name in DISTANCES for end in ("", "_low", "_high")}
    return [
        {
            "images": "real (floor)" if row["images"] == FLOOR else row["images"],
            distance_name(row): interval(row, "frechet_distance") or "undefined",
            "KID": interval(row, "kid"),
            **{name: interval(row, name) for name in _NEIGHBOURHOODS},
            "likely copies": None if row["copies"] is None else f"{row['copies']:.1%}",
            "number": row["num_images"],
            "real ones": row["num_real"],
            "extractor": row["extractor"],
            **{name.replace("_", " "): value for name, value in row.items() if name not in known},
        }
        for row in rows
    ]


def fidelity_notes(rows: Rows) -> list[str]:
    """Of which images there is no Fréchet distance, and why; and where the floor is too high."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["frechet_distance"] is None:
            reasons.setdefault(_why_undefined(row), []).append(row["images"])
    notes = [
        f"{distance_name(rows[0])} of {', '.join(images)}: {reason}."
        for reason, images in reasons.items()
    ]
    count = {row["images"]: row["num_images"] for row in rows}
    floor, most = count.get(FLOOR, math.inf), max(count.values(), default=0)
    if floor < most:
        notes.append(
            f"The floor is of {floor} images, as there are no more, and generated sets of up to {most}: of "
            "as many the floor's Fréchet distance would be lower. KID is alike for any number."
        )
    return notes


def _why_undefined(row: Row) -> str:
    return UNDEFINED if row["kid"] is not None else "undefined: too few images, and so is KID"


def _score(row: Row, name: str) -> Interval | str | None:
    """A score with its interval; where there is none, with two digits."""
    if row[name] is None or row.get(f"{name}_low") is not None:
        return interval(row, name)
    return f"{row[name]:.2f}"


def score_tables(rows: Rows) -> dict[str, Table]:
    """Detection scores by scorer."""
    scorers = dict.fromkeys(row["scorer"] for row in rows)
    return {
        scorer_name(scorer): [_score_row(row) for row in rows if row["scorer"] == scorer]
        for scorer in scorers
    }


def score_table(rows: Rows) -> Table:
    """Detection scores of all scorers."""
    return [{"scorer": scorer, **row} for scorer, own in score_tables(rows).items() for row in own]


def _score_row(row: Row) -> dict[str, Any]:
    return {
        "images": row["images"],
        "protocol": row["protocol"],
        "recall": _score(row, "recall"),
        "mAP": _score(row, "map"),
        "AP50": _score(row, "map50"),
        "AP75": _score(row, "map75"),
        "number": row["num_images"],
        "objects": row["num_objects"],
        "scores from": row["score_threshold"],
    }


def scorer_name(scorer: str) -> str:
    """What people call a judge of generated images."""
    return _SCORERS.get(scorer, scorer)


def recalls(rows: Rows) -> dict[str, dict[str, float]]:
    """Scorer to images to recall of what the layouts ask for, where they ask for something."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["protocol"] == "layout" and row["recall"] is not None:
            found.setdefault(scorer_name(row["scorer"]), {})[row["images"]] = row["recall"]
    return found


def blind_judges(rows: Rows) -> list[str]:
    """Which scorers find nothing in the real images, and so say nothing of generated ones."""
    return [
        f"The {scorer_name(row['scorer'])} finds none of the {row['num_objects']} objects in the real images "
        "(recall 0), and cannot judge generated ones: train it longer, give another, or lower "
        "evaluate.recall_score_threshold"
        for row in rows
        if (row["protocol"], row["images"], row["recall"]) == ("layout", REAL, 0)
    ]


def recall_sentences(rows: Rows) -> list[str]:
    """Whether each scorer finds easy objects more often than origin, and those more often than hard."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["protocol"] == "layout":
            found.setdefault(scorer_name(row["scorer"]), {})[row["images"]] = row
    return [_recall_sentence(scorer, of_scorer) for scorer, of_scorer in found.items()]


def _recall_sentence(scorer: str, rows: Mapping[str, Row]) -> str:
    order = [name for name in ("easy", "origin", "hard") if name in rows]
    if any(rows[name]["recall"] is None for name in order):
        return f"By the {scorer}, there is no recall: the layouts ask for nothing."
    if REAL in rows and rows[REAL]["recall"] == 0:
        return (
            f"The {scorer} finds nothing in real images: its recall of generated ones says nothing."
        )
    found = ", ".join(f"{name} {rows[name]['recall']:.3f}" for name in order)
    falls = all(rows[a]["recall"] > rows[b]["recall"] for a, b in pairwise(order))
    steps = [interval(rows[name], "recall_step") for name in order[:-1]]
    if not falls:
        told = "does not order"
    elif all(step and step.low > 0 for step in steps):
        told = "orders"
    else:
        told = "cannot be told to order"
    shown = ", ".join(filter(None, map(signed, steps)))
    return (
        f"By the {scorer}, recall {told} {' > '.join(order)}: {found}"
        f"{'; steps ' if shown else ''}{shown}."
    )


def published_fidelity(preset: str, rows: Rows) -> Table:
    """Published distances at 256 pixels, and ours."""
    published = {"GeoDiffusion": 20.16, "DetDiffusion": 19.28}
    table: Table = [
        {"model": name, "FID": value, "from": _PUBLISHED, "resolution": 256}
        for name, value in published.items()
    ]
    return table + [
        {
            "model": row["images"],
            "FID": _own_distance(row),
            "from": f"this run ({preset}; {row['num_images']} images)",
            "resolution": row["resolution"],
        }
        for row in rows
        if row["images"] != FLOOR
    ]


def _own_distance(row: Row) -> Interval | str:
    if distance_name(row) != "FID":
        return f"none: the extractor was {row['extractor']}"
    return interval(row, "frechet_distance") or _why_undefined(row)


def published_trainability(preset: str, arms: Rows) -> Table:
    """Published numbers of Faster R-CNN R50-FPN after 6 epochs on COCO's val2017 in points, and ours."""
    published = {"real": (34.5, 44.3), "real + DetDiffusion": (35.4, 46.6)}
    table: Table = [
        {"arm": arm, "mAP": mean, "AP of large objects": large, "from": _PUBLISHED}
        for arm, (mean, large) in published.items()
    ]
    return table + [
        {
            "arm": row["arm"],
            "mAP": _points(row[MAP]),
            "AP of large objects": _points(row["map_large"]),
            "from": f"this run ({preset}; {row['detector']}; seeds: {row['seeds']})",
        }
        for row in arms
    ]


def _points(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f}"


def shown_number(value: Any) -> Any:
    """A number of a run's results, where what is not finite is text, as people write it.

    >>> shown_number("-inf"), shown_number(0.5)
    ('-∞', 0.5)
    """
    return value.replace("inf", "∞") if isinstance(value, str) else value
