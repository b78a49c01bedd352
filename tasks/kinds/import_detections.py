"""Kind `import-detections`: detections of any other framework."""

from data.coco.image_sets import images_of
from data.coco.results import read_results
from data.vocabulary.tables import Dataset
from models.detector.given_options import DetectionsFile
from tasks.execution.context import WARNINGS, StepContext, Summary
from tasks.pages.detections import publish_detections


def run(context: StepContext[DetectionsFile]) -> Summary:
    """Read a COCO results file into `detections.parquet`."""
    options = context.options
    dataset, images = Dataset(context.inputs["ingest"]), images_of(context.inputs, options.split)
    found = read_results(options.path, dataset, options.split, images.image_ids)
    summary = publish_detections(context.out, found, images, options.split)
    empty = f"{options.path} has no detection in any of {len(images.images)} images"
    return summary | {WARNINGS: [] if found.num_rows else [empty]}
