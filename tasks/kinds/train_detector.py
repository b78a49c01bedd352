"""Kind `train-detector`: a detector on the real training images, or most of them, and a synthetic set."""

from data.attributes.folds import fold_image_ids, write_without
from data.coco.image_sets import SyntheticSet
from data.vocabulary.tables import Dataset
from models.detector.config_files import CocoFolder
from models.detector.options import DetectorTraining
from models.detector.training import train_detector
from tasks.execution.context import StepContext, Summary
from tasks.pages.cards import markdown_table, write_card


def run(context: StepContext[DetectorTraining]) -> Summary:
    """Train a detector and export it; a killed training goes on from its newest checkpoint."""
    options = context.options
    dataset = Dataset(context.inputs["ingest"])

    def on_step(step: int, losses: dict[str, float]) -> None:
        context.progress(step, options.num_iterations, f"loss {losses.get('loss', 0):.3f}")

    train_sets = [_real(context, dataset)]
    if "synthetic" in context.inputs:
        synthetic = SyntheticSet(context.inputs["synthetic"])
        train_sets.append(CocoFolder(synthetic.instances, synthetic.image_folder))
    out = context.out / "detector"
    train_detector(options, train_sets, dataset.things, context.work, out, on_step)
    facts = {
        "iterations": options.num_iterations,
        "images each": options.batch_size,
        "seed": options.seed,
        "trained on": " + ".join(_described(context)),
    }
    write_card(context.out, f"Detector {options.config}", markdown_table([facts]))
    return {}


def _real(context: StepContext[DetectorTraining], dataset: Dataset) -> CocoFolder:
    """The real training images and their accepted things, less those of the fold."""
    fold, instances = context.options.fold, dataset.instances_file("train")
    if fold is None:
        return CocoFolder(instances, dataset.image_folder("train"))
    rest = context.work / "instances.json"
    write_without(instances, fold_image_ids(dataset, "train", fold.number, fold.of), rest)
    return CocoFolder(rest, dataset.image_folder("train"))


def _described(context: StepContext[DetectorTraining]) -> list[str]:
    fold = context.options.fold
    real = "real images" + (f" but fold {fold.number} of {fold.of}" if fold else "")
    if "synthetic" not in context.inputs:
        return [real]
    policy = context.manifest("synthetic").options["policy"]
    return [real, f"synthetic images, {policy}"]
