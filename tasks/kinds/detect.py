"""Kind `detect`: what a detector finds in images.

Inference is cut into shards of images, so that a step that was killed goes on after those that are there.
"""

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.attributes.folds import fold_image_ids
from data.coco.image_sets import ImageSet, images_of, real_images
from data.vocabulary.tables import Dataset, write_table
from models.detector.detector import detections_table
from models.detector.given_options import DetectionOptions
from models.detector.loading import load_detector
from tasks.execution.context import StepContext, Summary, artifact_name
from tasks.execution.shards import Make, run_shards
from tasks.pages.detections import publish_detections

_SHARD_SIZE = 256
"""Images."""

_FOUND = "detections.parquet"

Context = StepContext[DetectionOptions]


def run(context: Context) -> Summary:
    """Write `detections.parquet`, and COCO's metrics of validation images."""
    images = _images(context)
    shards = run_shards(
        context,
        partial(_scorer, context.inputs["detector"], context.options),
        images.images,
        _SHARD_SIZE,
        name=itemgetter(0),
        unit="images scored",
    )
    found = pa.concat_tables(pq.read_table(shard / _FOUND) for shard in shards)
    return publish_detections(context.out, found, images, context.options.split)


def _images(context: Context) -> ImageSet:
    split, fold = context.options.split, context.options.fold
    if fold is None:
        return images_of(context.inputs, split)
    dataset = Dataset(context.inputs["ingest"])
    return real_images(dataset, split, fold_image_ids(dataset, split, fold.number, fold.of))


def _scorer(folder: Path, options: DetectionOptions) -> Make[tuple[int, Path]]:
    """Load a detector's artifact to score images with."""
    detector = load_detector(folder / "detector")

    def score(images: Sequence[tuple[int, Path]], shard: Path) -> None:
        found = detector.detect(images, options.batch_size)
        table = detections_table(options.split, found, artifact_name(folder))
        table = table.filter(pc.field("score") >= options.score_threshold)
        write_table(table, shard / _FOUND)

    return score
