"""Kind `image-features`: what an extractor makes of images."""

import numpy as np
import pyarrow as pa

from data.coco.image_sets import ImageSet, SyntheticSet, real_images
from data.errors import InvalidConfig
from data.layouts.layout import evenly_spaced
from data.vocabulary.tables import Dataset, write_table
from models.detector.detector import Detector
from models.metrics.features import (
    FEATURES_NAME,
    DetectorFeatures,
    Extractor,
    InceptionFeatures,
    image_features,
)
from models.metrics.options import FeatureOptions
from tasks.execution.context import StepContext, Summary, artifact_name
from tasks.pages.cards import markdown_table, write_card

Context = StepContext[FeatureOptions]


def run(context: Context) -> Summary:
    """Write `features.parquet`: image id and its features, float32."""
    extractor, name = _extractor(context)
    images = _images(context)
    features = image_features(
        extractor, [path for _, path in images.images], context.options.resolution, context.progress
    )
    flat = pa.array(features.ravel())
    column = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    table = pa.table({"image_id": np.array(images.image_ids, np.int64), "features": column})
    write_table(table, context.out / FEATURES_NAME)
    facts = {"extractor": name, "images": len(features), "features": features.shape[1]}
    write_card(context.out, "Image features", markdown_table([facts]))
    return {"extractor": name}


def _images(context: Context) -> ImageSet:
    """Those of a synthetic set, or of a split; of that evenly spread as many as the set `like` has."""
    if "set" in context.inputs:
        return SyntheticSet(context.inputs["set"]).image_set
    images = real_images(Dataset(context.inputs["ingest"]), context.options.split)
    if "like" not in context.inputs:
        return images
    count = SyntheticSet(context.inputs["like"]).provenance.num_rows
    return ImageSet(images.instances, evenly_spaced(images.images, count))


def _extractor(context: Context) -> tuple[Extractor, str]:
    if context.options.extractor == "inception":
        return InceptionFeatures(context.options.inception_weights), "InceptionV3"
    folder = context.inputs.get("detector")
    if folder is None:
        raise InvalidConfig("the extractor `detector` needs the input `detector`")
    return DetectorFeatures(Detector.load(folder / "detector")), artifact_name(folder)
