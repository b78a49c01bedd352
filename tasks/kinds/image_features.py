"""Kind `image-features`: what an extractor makes of images."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from data.coco.image_sets import images_of
from data.vocabulary.tables import write_table
from models.metrics.features import (
    RESIZE,
    Extractor,
    InceptionFeatures,
    RandomFeatures,
    image_features,
)
from models.metrics.options import FEATURES_NAME, MIRRORED, FeatureOptions
from tasks.execution.context import StepContext, Summary
from tasks.execution.shards import Make, run_shards
from tasks.pages.cards import markdown_table, write_card

_SHARD_SIZE = 256
"""Images."""

_FEATURES = "features.npy"

Context = StepContext[FeatureOptions]


def run(context: Context) -> Summary:
    """Write `features.parquet`: image id and its features, float32, and if asked its mirror image's."""
    options = context.options
    images = images_of(context.inputs, options.split)
    shards = run_shards(
        context,
        partial(_describer, options),
        images.images,
        _SHARD_SIZE,
        name=itemgetter(0),
        unit="images",
    )
    columns = {"image_id": pa.array(images.image_ids, pa.int64())}
    names = ["features", MIRRORED] if options.mirrored else ["features"]
    found = np.concatenate([np.load(shard / _FEATURES) for shard in shards])
    for name, features in zip(names, np.split(found, len(names), axis=1), strict=True):
        columns[name] = pa.FixedSizeListArray.from_arrays(
            pa.array(features.ravel()), features.shape[1]
        )
    write_table(pa.table(columns), context.out / FEATURES_NAME)
    facts: Summary = {
        "extractor": (RandomFeatures if options.extractor == "random" else InceptionFeatures).name,
        "images": len(images.images),
        "features": columns["features"].type.list_size,
        "resolution": options.resolution,
        "resize": RESIZE,
    }
    write_card(context.out, "Image features", markdown_table([facts]))
    return facts


def _describer(options: FeatureOptions) -> Make[tuple[int, Path]]:
    """Load an extractor."""
    extractor: Callable[[Tensor], Tensor] = _extractor(options)
    if options.mirrored:
        extractor = partial(_seen_both_ways, extractor)

    def describe(images: Sequence[tuple[int, Path]], shard: Path) -> None:
        paths = [path for _, path in images]
        np.save(shard / _FEATURES, image_features(extractor, paths, options.resolution))

    return describe


def _seen_both_ways(extractor: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features of images, and beside them those of their mirror images."""
    return torch.cat([extractor(images), extractor(images.flip(3))], dim=1)


def _extractor(options: FeatureOptions) -> Extractor:
    if options.extractor == "random":
        return RandomFeatures()
    return InceptionFeatures(options.inception_weights)
