"""Kind `image-features`: what an extractor makes of images."""

import numpy as np
import pyarrow as pa

from data.coco.image_sets import ImageSet, SyntheticSet, real_images
from data.vocabulary.tables import Dataset, write_table
from models.metrics.features import (
    RESIZE,
    Extractor,
    InceptionFeatures,
    RandomFeatures,
    image_features,
)
from models.metrics.options import FEATURES_NAME, FeatureOptions
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card

Context = StepContext[FeatureOptions]


def run(context: Context) -> Summary:
    """Write `features.parquet`: image id and its features, float32."""
    options, images = context.options, _images(context)
    extractor = _extractor(options)
    paths = [path for _, path in images.images]
    features = image_features(extractor, paths, options.resolution, context.progress)
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
    table = pa.table({"image_id": np.array(images.image_ids, np.int64), "features": column})
    write_table(table, context.out / FEATURES_NAME)
    facts: Summary = {
        "extractor": extractor.name,
        "images": len(features),
        "features": features.shape[1],
        "resolution": options.resolution,
        "resize": RESIZE,
    }
    write_card(context.out, "Image features", markdown_table([facts]))
    return facts


def _images(context: Context) -> ImageSet:
    """Those of a synthetic set, or all of a split."""
    if "set" in context.inputs:
        return SyntheticSet(context.inputs["set"]).image_set
    return real_images(Dataset(context.inputs["ingest"]), context.options.split)


def _extractor(options: FeatureOptions) -> Extractor:
    if options.extractor == "random":
        return RandomFeatures()
    return InceptionFeatures(options.inception_weights)
