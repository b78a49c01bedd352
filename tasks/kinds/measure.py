"""Kind `measure`: what the synthetic validation sets are like, beside the real images of their layouts."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from data.coco.image_sets import SyntheticSet
from data.layouts.layout import dataset_selection
from data.layouts.options import POLICIES
from data.vocabulary.tables import Dataset, write_table
from models.metrics.arms import REAL
from models.metrics.coco_metrics import CocoTruth, read_truth, truth_boxes
from models.metrics.comparison import student_interval
from models.metrics.detection_scores import (
    SCORE_THRESHOLDS,
    Hits,
    ScoredImages,
    ScoreProtocolName,
    count_hits,
    detection_score,
    recall_difference,
    score_intervals,
    scored_images,
)
from models.metrics.distances import (
    RealSide,
    copy_threshold,
    frechet_defined,
    jackknife_intervals,
    moments,
    nearest_real,
    polynomial_mmd,
    prdc,
)
from models.metrics.interval import Interval
from models.metrics.options import DETECTOR, FEATURES_NAME, MIRRORED, SCORER, MeasureOptions
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.pages.cards import narrow_table, write_card
from tasks.pages.detections import COCO_METRICS_NAME, DETECTIONS_NAME
from tasks.pages.numbers import number_name
from tasks.pages.report_tables import (
    DISTANCES,
    FLOOR,
    SCORES,
    blind_judges,
    fidelity_table,
    score_table,
)

FIDELITY_NAME, SCORES_NAME, COPIES_NAME = "fidelity.parquet", "scores.parquet", "copies.parquet"
"""Tables of distances, of detection scores, and of the generated images nearest to a training image."""

_RANGES = {
    "frechet_distance": (0, math.inf),
    "precision": (0, 1),
    "recall": (0, 1),
    "map": (0, 1),
    "map50": (0, 1),
    "map75": (0, 1),
    "density": (0, math.inf),
    "coverage": (0, 1),
}
"""Where numbers can be; the estimate of KID may be negative."""

_ORDER = ("easy", "origin", "hard")
"""Sets from that of the things found most often to that of those found least."""

_COPIES_SHOWN = 8
"""Pairs of a set."""

_MOST_DRAWS = 5
"""Of other real images."""

_FEWEST = 8
"""Images that distances need: an image and five neighbours where some are left out."""

Rows = list[dict[str, Any]]
Features = tuple[Int[np.ndarray, " images"], Float[np.ndarray, "images features"]]
Statistic = Callable[[Int[np.ndarray, " kept"]], tuple[float, ...]]
Context = StepContext[MeasureOptions]


def run(context: Context) -> Summary:
    """Write the tables of fidelity, detection scores and copies."""
    folders = context.many("sets")
    sets = {str(name): SyntheticSet(folders[name]) for name in POLICIES if name in folders}
    scores = _score_rows(context, sets)
    fidelity, copies = _fidelity_rows(context, sets)
    write_table(pa.Table.from_pylist(scores), context.out / SCORES_NAME)
    write_table(pa.Table.from_pylist(fidelity), context.out / FIDELITY_NAME)
    write_table(pa.Table.from_pylist(copies), context.out / COPIES_NAME)
    warnings = blind_judges(scores)
    write_card(
        context.out,
        "Measures of generated images",
        *(f"**{text}.**" for text in warnings),
        f"## Distance to the real images\n\n{narrow_table(fidelity_table(fidelity))}",
        f"## Detection score and recall\n\n{narrow_table(score_table(scores))}",
    )
    return {"results": _results(context, scores, fidelity), WARNINGS: warnings}


def _score_rows(context: Context, sets: Mapping[str, SyntheticSet]) -> Rows:
    """By scorer and protocol the real images first, then every set."""
    dataset, rows = Dataset(context.inputs["ingest"]), []
    groups = dataset.groups("val")
    protocols: tuple[ScoreProtocolName, ...] = get_args(ScoreProtocolName)
    scorers = dict.fromkeys(name.partition("/")[0] for name in context.many("scores"))
    for protocol in protocols:
        scored = {name: scored_images(protocol, dataset, item) for name, item in sets.items()}
        truths = {REAL: next(iter(scored.values())).real}
        truths |= {name: item.generated for name, item in scored.items()}
        for scorer in scorers:
            found = {
                name: _score_row(context, scorer, protocol, name, truth, scored.get(name), groups)
                for name, truth in truths.items()
            }
            steps = {
                easier: (easier, harder) for easier, harder in pairwise(filter(found.get, _ORDER))
            }
            for name, (row, _) in found.items():
                hits = [found[item][1] for item in steps.get(name, ())]
                step = recall_difference(*hits) if hits else None
                rows.append(row | _limits("recall_step", step))
    return sorted(rows, key=lambda row: (row["scorer"] != SCORER, row["scorer"]))


def _score_row(
    context: Context,
    scorer: str,
    protocol: ScoreProtocolName,
    name: str,
    truth: CocoTruth,
    generated: ScoredImages | None,
    groups: Mapping[int, int],
) -> tuple[dict[str, Any], Hits]:
    """Scores and recall, and what was found in each image.

    Args:
        generated: of which set the images are; None for the real ones.
        groups: of the validation images.
    """
    found = pq.read_table(context.inputs[f"scores/{scorer}/{name}"] / DETECTIONS_NAME)
    boxes = truth_boxes(truth)
    found = found.filter(pc.is_in(found["image_id"], pa.array(list(boxes), pa.int64())))
    if generated:
        found = generated.in_real_pixels(found)
    sources = generated.sources if generated else {image_id: image_id for image_id in boxes}
    layouts = {image_id: groups[source] for image_id, source in sources.items()}
    hits = count_hits(
        truth,
        found,
        layouts,
        score_threshold=context.options.recall_score_threshold,
        iou_threshold=context.options.recall_iou_threshold,
    )
    row = {
        "scorer": scorer,
        "gave the attributes": scorer == DETECTOR,
        "protocol": protocol,
        "images": name,
        "num_images": len(boxes),
        "num_objects": sum(len(item) for item, _ in boxes.values()),
        "score_threshold": SCORE_THRESHOLDS[protocol],
        "recall": hits.recall(np.arange(len(hits.image_ids))) if hits.boxes.any() else None,
        **detection_score(protocol, truth, found).as_row(),
    }
    intervals = score_intervals(protocol, truth, found, hits)
    for number in SCORES:
        row |= _limits(number, intervals.get(number)) | {number: row[number]}
    return row, hits


def _fidelity_rows(context: Context, sets: Mapping[str, SyntheticSet]) -> tuple[Rows, Rows]:
    """Distances of every set and of other real images to the real ones, and the likeliest copies."""
    found = {name: _features(folder) for name, folder in context.many("features").items()}
    dataset = Dataset(context.inputs["ingest"])
    sources = sorted({key for item in sets.values() for key in item.source_image_ids})
    image_ids, features = found[REAL]
    side = _Real(features[np.isin(image_ids, sources)], _facts(context, sets))
    known_ids, known = found["train"]
    folders = context.many("features")
    mirrored = _features(folders[REAL], MIRRORED)[1][np.isin(image_ids, sources)]
    limit = copy_threshold(known, side.features, mirrored)
    chosen = np.isin(
        known_ids, dataset_selection(dataset, "train", context.options.protocol).image_ids
    )
    groups = dataset.groups("train")
    others = np.array([groups[key] for key in known_ids[chosen].tolist()])
    rows = side.floor_rows(known[chosen], others, max(len(found[name][1]) for name in sets))
    groups = dataset.groups("val")
    copies: Rows = []
    for name, item in sets.items():
        ids, generated = found[name]
        layouts = np.array([groups[item.source_of[key]] for key in ids.tolist()])
        nearest, distance = nearest_real(known, generated, _features(folders[name], MIRRORED)[1])
        share = float((distance <= limit).mean())
        rows.append(side.row(name, generated, layouts) | {"copies": share})
        copies += [
            {
                "images": name,
                "image_id": int(ids[row]),
                "real_image_id": int(known_ids[nearest[row]]),
                "distance": float(distance[row]),
                "limit": limit,
            }
            for row in np.argsort(distance)[:_COPIES_SHOWN]
        ]
    return rows, copies


def _facts(context: Context, sets: Mapping[str, SyntheticSet]) -> dict[str, Any]:
    """What distances depend on beside the images."""
    facts = context.manifest(f"features/{REAL}").summary
    paths = Dataset(context.inputs["ingest"]).image_paths("val")
    codecs = sorted({path.suffix.lstrip(".").lower() for _, path in paths})
    side = facts["resolution"]
    return {
        "extractor": facts["extractor"],
        "num_features": facts["features"],
        "resolution": side,
        "resize": facts["resize"],
        "codec": f"real {', '.join(codecs)}; generated png",
        "way": _way(context, sets, side),
    }


def _way(context: Context, sets: Mapping[str, SyntheticSet], side: int) -> str:
    """What became of the generated images between the generator and the extractor."""
    images = [item for made in sets.values() for item in read_truth(made.instances)["images"]]
    if {(item["width"], item["height"]) for item in images} == {(side, side)}:
        return f"generated at {side} px"
    option = context.manifest(f"sets/{next(iter(sets))}").options["image_size"]
    what = {"generator": "proportions", "source": "size"}[option]
    return f"generated at {side} px, bicubic to the real image's {what} and back"


def _features(folder: Path, column: str = "features") -> Features:
    """Image ids, and features."""
    table = pq.read_table(folder / FEATURES_NAME, columns=["image_id", column]).combine_chunks()
    flat = pc.list_flatten(table[column]).to_numpy()
    return table["image_id"].to_numpy(), flat.reshape(table.num_rows, -1)


class _Real:
    """The real images that others are held against.

    Args:
        features: of theirs.
        facts: for every row.
    """

    def __init__(self, features: np.ndarray, facts: Mapping[str, Any]):
        self.features = features
        self._facts = facts
        self._moments = (
            RealSide(moments([features]))
            if frechet_defined(len(features), features.shape[1])
            else None
        )

    def floor_rows(self, others: np.ndarray, groups: np.ndarray, count: int) -> Rows:
        """Other real images for generated ones: as many, in several disjoint draws; or no row.

        Args:
            groups: what each of the others belongs to, which is drawn at once.
        """
        count = min(count, len(others))
        if not count:
            return []
        group_ids, place = np.unique(groups, return_inverse=True)
        drawn = np.argsort(np.random.default_rng(0).permutation(len(group_ids)))
        order = np.argsort(drawn[place], kind="stable")
        num_draws = min(len(others) // count, _MOST_DRAWS)
        draws = [order[i * count : (i + 1) * count] for i in range(num_draws)]
        row = (
            self._row(FLOOR, count, self._spread([others[draw] for draw in draws]))
            if num_draws > 1
            else self.row(FLOOR, others[draws[0]], groups[draws[0]])
        )
        return [row | {"draws": num_draws, "copies": None, "way": None}]

    def row(self, name: str, generated: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
        """Distances of one set, with intervals by the jackknife.

        Args:
            clusters: what each image belongs to, by its layout; such images are left out together.

        Raises:
            ValueError: there are not as many clusters as images.
        """
        if len(clusters) != len(generated):
            raise ValueError(f"{len(generated)} images, but {len(clusters)} clusters")
        names, distances = self._distances(generated)
        enough = names and len(np.unique(clusters)) > 1
        found = jackknife_intervals(distances, clusters) if enough else ()
        return self._row(name, len(generated), dict(zip(names, found, strict=False)))

    def _spread(self, draws: Sequence[np.ndarray]) -> dict[str, Interval]:
        """Distances of several sets of equal size, on average."""
        names, _ = self._distances(draws[0])
        found = [self._distances(draw)[1](np.arange(len(draw))) for draw in draws if names]
        return dict(zip(names, map(student_interval, zip(*found, strict=True)), strict=True))

    def _distances(self, generated: np.ndarray) -> tuple[Sequence[str], Statistic]:
        """Names of the distances that so many images have, none of too few; and what measures them."""
        defined = self._moments and frechet_defined(len(generated), generated.shape[1])

        def distances(kept: Int[np.ndarray, " kept"]) -> tuple[float, ...]:
            shown = generated[kept]
            near = astuple(prdc(self.features, shown))
            numbers = (polynomial_mmd(self.features, shown), *near)
            if self._moments and defined:
                return (self._moments.frechet_distance(moments([shown])), *numbers)
            return numbers

        enough = min(len(self.features), len(generated)) >= _FEWEST
        return (DISTANCES if defined else DISTANCES[1:]) if enough else (), distances

    def _row(self, name: str, num_images: int, found: Mapping[str, Interval]) -> dict[str, Any]:
        row = {
            "images": name,
            "num_images": num_images,
            "num_real": len(self.features),
            "draws": 1,
            **self._facts,
        }
        for number in DISTANCES:
            row |= _limits(number, found.get(number))
        return row


def _limits(name: str, interval: Interval | None) -> dict[str, float | None]:
    """A number and the limits of its interval, of which none is where the number cannot be."""
    names = (name, f"{name}_low", f"{name}_high")
    if interval is None:
        return dict.fromkeys(names)
    least, most = _RANGES.get(name, (-math.inf, math.inf))
    low, high = max(interval.low, least), min(interval.high, most)
    return dict(zip(names, (interval.value, low, high), strict=True))


def _results(context: Context, scores: Rows, fidelity: Rows) -> dict[str, Any]:
    """The headline numbers as one flat mapping; scores are the independent scorer's, of the layouts."""
    detector = json.loads((context.inputs["detections"] / COCO_METRICS_NAME).read_text())
    results = {
        "detector_map_real": detector["map"],
        "detector_map50_real": detector["map50"],
        "hard_share_train": context.manifest("attributes").summary["hard_share"]["train"],
    }
    of_layouts = [row for row in scores if row["protocol"] == "layout"]
    of_scorer = [row for row in of_layouts if row["scorer"] == SCORER]
    for number, column in (("ap50", "map50"), ("ap75", "map75")):
        for row in of_scorer:
            results |= _with_limits(f"score_{number}_{row['images']}", row, column)
    for row in of_layouts:
        suffix = "" if row["scorer"] == SCORER else f"_by_{number_name(row['scorer'])}"
        results |= _with_limits(f"recall_{row['images']}{suffix}", row, "recall")
    for number, column in (("frechet", "frechet_distance"), ("kid", "kid"), ("copies", "copies")):
        results |= {f"{number}_{row['images']}": row[column] for row in fidelity}
    return results


def _with_limits(name: str, row: Mapping[str, Any], column: str) -> dict[str, float | None]:
    return {f"{name}{end}": row[f"{column}{end}"] for end in ("", "_low", "_high")}
