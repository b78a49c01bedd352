"""Kind `import-detector`: a detector of the user's as one of ours."""

from collections.abc import Mapping

from data.vocabulary.tables import Dataset
from models.detector.classes import UNKNOWN_CLASS, require_all_classes, require_common_class
from models.detector.darknet import DarknetDetector
from models.detector.detector import Detector
from models.detector.given_options import (
    CheckpointConfig,
    DarknetConfig,
    DetectorFolder,
    DetectorSource,
)
from models.detector.loading import load_detector
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card


def run(context: StepContext[DetectorSource]) -> Summary:
    """Write the detector's folder, its classes by the ids of the data set's things."""
    source, things = context.options.source, Dataset(context.inputs["ingest"]).things
    detector, title = _load(source, things)
    require_common_class(title, detector.categories, things)
    if context.options.all_classes:
        require_all_classes(title, detector.categories, things)
    detector.save(context.out / "detector")
    rows = [
        {"class": name, "of the data set": key != UNKNOWN_CLASS}
        for key, name in detector.categories
    ]
    write_card(context.out, f"Detector {title}", markdown_table(rows))
    return {}


def _load(
    source: CheckpointConfig | DarknetConfig | DetectorFolder, things: Mapping[int, str]
) -> tuple[Detector | DarknetDetector, str]:
    """The detector, and its name for people."""
    match source:
        case CheckpointConfig():
            return Detector.from_checkpoint(source, things), source.checkpoint.name
        case DarknetConfig():
            return DarknetDetector.from_source(source, things), source.weights.name
        case DetectorFolder():
            return load_detector(source.folder, things), source.folder.name
