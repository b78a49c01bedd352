"""Detections for the attributes: from a detector, from detectors by fold, or from results files.

Inference is cut into shards of images. A shard is a file that appears when it is whole, so that a run
that was killed goes on after the last one. Detections of the same identity are taken over from an
earlier artifact: other labelling options need no inference.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.folds import assign_folds, write_without
from data.results import read_results
from data.store import ArtifactStore, StageIdentity, keyed_options
from data.tables import Dataset, Split, write_table
from models.config import AttributeStageConfig, CheckpointConfig, DetectorConfig, ScoringConfig
from models.detector import Detector, detections_table
from models.detector_config import CocoFolder
from tasks.context import Progress, StepContext
from tasks.side_by_side import Run, train_side_by_side
from tasks.stages import foreign_files
from tasks.train_detector import real_images

DETECTIONS_FILE = "detections.parquet"
_VERSION = 1
"""Bumped by hand whenever this module's output changes."""

_SHARD_SIZE = 256
"""Images."""

_SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True, slots=True)
class Source:
    """Images of one split and the detector that scores them.

    Attributes:
        name: identity of the detector, as it stands in the table.
        load: makes the detector.
        images: image id and path.
    """

    name: str
    split: Split
    load: Callable[[], Detector]
    images: list[tuple[int, Path]]


def detections_key(context: StepContext[AttributeStageConfig]) -> str:
    """Digest of everything that the detections depend on: no labelling option among it."""
    inputs = {name: folder.name for name, folder in context.inputs.items()}
    inputs |= foreign_files(context.config)
    options = keyed_options(context.config.scoring)
    return StageIdentity("detections", _VERSION, options, inputs).key


def obtain_detections(context: StepContext[AttributeStageConfig], dataset: Dataset) -> pa.Table:
    """Take detections over from an earlier artifact, or read or make them.

    Returns:
        A table with schema `DETECTIONS`, by split, image and descending score.
    """
    earlier = _earlier(context)
    if earlier is not None:
        return pq.read_table(earlier)
    scoring = context.config.scoring
    if scoring.results is not None:
        paths = (scoring.results.train, scoring.results.val)
        parts = [read_results(path, dataset, s) for path, s in zip(paths, _SPLITS, strict=True)]
    else:
        sources = _sources(context, dataset)
        parts = list(detect(sources, scoring, context.work / "shards", context.progress))
    found = pa.concat_tables(parts)
    found = found.filter(pc.field("score") >= scoring.score_threshold)
    return found.sort_by(
        [("split", "ascending"), ("image_id", "ascending"), ("score", "descending")]
    )


def _earlier(context: StepContext[AttributeStageConfig]) -> Path | None:
    store, key = ArtifactStore(context.root), detections_key(context)
    for manifest in store.manifests("extract-attributes"):
        same = manifest.summary.get("detections_key") == key
        if same and DETECTIONS_FILE not in store.damage(manifest):
            return store.path(manifest.stage, manifest.key) / DETECTIONS_FILE
    return None


def _sources(context: StepContext[AttributeStageConfig], dataset: Dataset) -> list[Source]:
    scoring, things = context.config.scoring, dataset.things
    images = {split: dataset.image_paths(split) for split in _SPLITS}
    load: Callable[[], Detector]
    match scoring.detector:
        case CheckpointConfig() as given:
            name = f"{given.checkpoint.name}@{_digest(context)}"
            load = partial(Detector.from_checkpoint, given, things)
        case Path() as folder:
            name = f"{folder.name}@{_digest(context)}"
            load = partial(Detector.load, folder, things)
        case None:
            trained = context.inputs["train-detector"]
            name, load = (
                f"train-detector/{trained.name}",
                partial(Detector.load, trained / "detector"),
            )
    train = [Source(name, "train", load, images["train"])]
    if scoring.num_folds > 1:
        train = _folds(context, dataset, scoring.num_folds, name)
    return [*train, Source(name, "val", load, images["val"])]


def _digest(context: StepContext[AttributeStageConfig]) -> str:
    """What tells the user's detector from another of the same name."""
    files = "".join(foreign_files(context.config).values())
    return hashlib.sha256(files.encode()).hexdigest()[:12]


def _folds(
    context: StepContext[AttributeStageConfig], dataset: Dataset, num_folds: int, name: str
) -> list[Source]:
    """Train a detector on all images but each fold's; the fold is what it will score."""
    config = DetectorConfig.model_validate(context.manifest("train-detector").config)
    paths = dict(dataset.image_paths("train"))
    folds = assign_folds(list(paths), num_folds)
    runs = []
    for number, fold in enumerate(folds):
        work = context.work / f"fold-{number}"
        work.mkdir(exist_ok=True)
        rest = work / "instances.json"
        write_without(dataset.instances_file("train"), fold, rest)
        train_sets = (CocoFolder(rest, real_images(dataset).images),)
        runs.append(Run(config, train_sets, dataset.folder, work, work / "detector"))
    train_side_by_side(runs, context.num_workers, context.progress)
    return [
        Source(
            name=f"{name}/fold-{number}-of-{num_folds}",
            split="train",
            load=partial(Detector.load, run.out),
            images=[(image_id, paths[image_id]) for image_id in fold],
        )
        for number, (run, fold) in enumerate(zip(runs, folds, strict=True))
    ]


def detect(
    sources: list[Source], scoring: ScoringConfig, work: Path, progress: Progress
) -> Iterator[pa.Table]:
    """Score every source's images shard by shard; a finished shard is read, not made again."""
    work.mkdir(exist_ok=True)
    total, done = sum(len(source.images) for source in sources), 0
    for number, source in enumerate(sources):
        load = cache(source.load)  # one detector at a time is held
        for start in range(0, len(source.images), _SHARD_SIZE):
            shard = source.images[start : start + _SHARD_SIZE]
            path = work / f"{number}-{start}.parquet"
            if not path.exists():
                found = load().detect(shard, scoring.batch_size)
                table = detections_table(source.split, found, source.name)
                table = table.filter(pc.field("score") >= scoring.score_threshold)
                temporary = path.with_suffix(".tmp")
                write_table(table, temporary)
                temporary.replace(path)
            done += len(shard)
            progress(done, total, "images scored")
            yield pq.read_table(path)
