"""Kind `import-detector`: a detector of the user's as one of ours."""

from data.vocabulary.tables import Dataset
from models.detector.detector import Detector
from models.detector.options import CheckpointConfig, DetectorSource
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card


def run(context: StepContext[DetectorSource]) -> Summary:
    """Write the detector's folder, its classes by the ids of the data set's things."""
    source, things = context.options.source, Dataset(context.inputs["ingest"]).things
    if isinstance(source, CheckpointConfig):
        detector, title = Detector.from_checkpoint(source, things), source.checkpoint.name
    else:
        detector, title = Detector.load(source.folder, things), source.folder.name
    detector.save(context.out / "detector")
    rows = [{"class": name, "of the data set": key in things} for key, name in detector.categories]
    write_card(context.out, f"Detector {title}", markdown_table(rows))
    return {}
