"""Kind `detect`: what a detector finds in images.

Inference is cut into shards of images. A shard is a file that appears when it is whole, so that a step
that was killed goes on after the last one.
"""

from collections.abc import Iterator
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.artifacts.store import durable_file
from data.attributes.folds import fold_image_ids
from data.coco.image_sets import ImageSet, SyntheticSet, real_images
from data.vocabulary.tables import Dataset, write_table
from models.detector.detector import detections_table
from models.detector.loading import load_detector
from models.detector.options import DetectionOptions
from tasks.execution.context import StepContext, Summary, artifact_name
from tasks.pages.detections import publish_detections

_SHARD_SIZE = 256
"""Images."""

Context = StepContext[DetectionOptions]


def run(context: Context) -> Summary:
    """Write `detections.parquet`, and COCO's metrics of validation images."""
    images = _images(context)
    found = pa.concat_tables(_shards(context, images))
    return publish_detections(context.out, found, images, context.options.split)


def _images(context: Context) -> ImageSet:
    if "set" in context.inputs:
        return SyntheticSet(context.inputs["set"]).image_set
    dataset, split = Dataset(context.inputs["ingest"]), context.options.split
    fold = context.options.fold
    if fold is None:
        return real_images(dataset, split)
    return real_images(dataset, split, fold_image_ids(dataset, split, fold.number, fold.of))


def _shards(context: Context, images: ImageSet) -> Iterator[pa.Table]:
    """Score the images shard by shard; a finished shard is read, not made again."""
    options, folder = context.options, context.inputs["detector"]
    load = cache(lambda: load_detector(folder / "detector"))
    shards = context.work / "shards"
    shards.mkdir(exist_ok=True)
    for start in range(0, len(images.images), _SHARD_SIZE):
        shard = images.images[start : start + _SHARD_SIZE]
        path = shards / f"{start:09d}.parquet"
        if not path.exists():
            found = load().detect(shard, options.batch_size)
            table = detections_table(options.split, found, artifact_name(folder))
            table = table.filter(pc.field("score") >= options.score_threshold)
            with durable_file(path) as file:
                write_table(table, file)
        context.progress(start + len(shard), len(images.images), "images scored")
        yield pq.read_table(path)
