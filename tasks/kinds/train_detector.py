"""Kind `train-detector`: a detector on real images, or some of them, and on synthetic or pseudo-labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import TypeAdapter

from data.attributes.folds import first_image_ids, fold_image_ids, write_some
from data.coco.box_noise import write_noisy
from data.coco.export import export_objects
from data.coco.image_sets import SyntheticSet
from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset
from models.detector.config_files import CocoFolder, Mixture, learning_rate
from models.detector.options import DetectorTraining, require_spare
from models.detector.training import train_detector
from tasks.execution.context import StepContext, Summary
from tasks.execution.data_parallel import join_by_command, train_in_processes
from tasks.pages.cards import markdown_table, write_card

Context = StepContext[DetectorTraining]


@dataclass(frozen=True, slots=True)
class _Part:
    """Images to train on.

    Attributes:
        what: for people.
        folder: what MMDetection reads.
        count: number of images.
        pasting: how objects are pasted into them, for people; None: they are not.
    """

    what: str
    folder: CocoFolder
    count: int
    pasting: str | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows from options and images.

    Attributes:
        folders: what MMDetection reads.
        iterations: optimiser steps.
        mixture: of the images of the first folder and the others.
    """

    folders: tuple[CocoFolder, ...]
    iterations: int
    mixture: Mixture | None


def run(context: Context) -> Summary:
    """Train a detector and export it; a killed training goes on from its newest checkpoint."""
    options = context.options
    dataset = Dataset(context.inputs["ingest"])
    options.check_without_data()
    options.check(dataset)
    parts = _parts(context, dataset)
    iterations = _iterations(context, dataset)
    mixture = _mixture(options, [part.count for part in parts], iterations)
    rate = learning_rate(options, [part.folder for part in parts], dataset.things)
    plan = _Plan(tuple(part.folder for part in parts), iterations, mixture)
    if options.num_processes == 1:
        _train(context, plan)
    else:
        facts = TypeAdapter(_Plan).dump_python(plan, mode="json")
        train_in_processes(context, _train_as_one_of_several, __name__, iterations, facts)
    counts = {part.what: part.count for part in parts}
    passes = _passes(list(counts.values()), iterations * options.batch_size, mixture)
    pasting = ", ".join(f"{part.what} {part.pasting}" for part in parts if part.pasting)
    facts = {
        "trained on": ", ".join(f"{count} {what}" for what, count in counts.items()),
        "iterations": iterations,
        "images each": options.batch_size,
        **passes,
        "learning rate": rate,
        "augmentation": options.augmentation,
        **({"pasting": pasting} if pasting else {}),
        "seed": options.seed,
        **({"noise of real boxes": options.box_noise} if options.box_noise else {}),
    }
    write_card(context.out, f"Detector {options.config}", markdown_table([facts]))
    return {"images": counts, "iterations": iterations, **passes}


def _train_as_one_of_several(context: Context, plan: Any) -> None:
    _train(context, TypeAdapter(_Plan).validate_python(plan))


def _train(context: Context, plan: _Plan) -> None:
    """Train in this process, alone or as one of several."""
    length = {"num_iterations": plan.iterations, "num_epochs": 0}

    def on_step(step: int, losses: dict[str, float]) -> None:
        context.progress(step, plan.iterations, f"loss {losses.get('loss', 0):.3f}")

    train_detector(
        context.options.model_copy(update=length),
        plan.folders,
        Dataset(context.inputs["ingest"]).things,
        context.work,
        context.out / "detector",
        on_step,
        plan.mixture,
    )


def _parts(context: Context, dataset: Dataset) -> list[_Part]:
    """What is trained on.

    Raises:
        InvalidConfig: there are fewer spare real images than the synthetic set has.
    """
    options = context.options
    real, spare = _real_ids(options, dataset)
    synthetic = _synthetic_set(context) if "synthetic" in context.inputs else None
    if options.images == "real+spare" and synthetic:
        wanted = synthetic.provenance.num_rows
        require_spare(dataset, wanted)
        spare = first_image_ids(dataset, "spare", wanted)
    parts = []
    if options.images != "synthetic":
        parts += [_real_part(context, dataset, "train", real)]
        parts += [_real_part(context, dataset, "spare", spare)] if spare else []
    if synthetic and options.images in {"real+synthetic", "synthetic"}:
        policy = context.manifest("synthetic").options["policy"]
        what = f"synthetic ({policy}{', verified' if synthetic.verified else ''})"
        folder = CocoFolder(synthetic.instances, synthetic.image_folder, is_pasted_into=False)
        parts.append(_Part(what, folder, synthetic.provenance.num_rows))
    if options.images == "real+pseudo":
        pseudo = Dataset(context.inputs["pseudo-labels"], images_of=context.inputs["unlabelled"])
        folder = CocoFolder(
            pseudo.instances_file("unlabelled"),
            pseudo.image_folder("unlabelled"),
            is_pasted_into=False,
        )
        parts.append(_Part("pseudo-labelled", folder, pseudo.images.num_rows))
    return parts


def _synthetic_set(context: Context) -> SyntheticSet:
    return SyntheticSet(context.inputs["synthetic"], context.inputs.get("verified"))


def _real_ids(options: DetectorTraining, dataset: Dataset) -> tuple[list[int], list[int]]:
    """Training images less those of the fold, or the multiple of them, with spare ones above one."""
    num_train = len(dataset.split_images("train"))
    wanted = round(options.real_multiple * num_train)
    spare = first_image_ids(dataset, "spare", max(wanted - num_train, 0))
    real = first_image_ids(dataset, "train", wanted)
    if options.fold:
        left_out = fold_image_ids(dataset, "train", options.fold.number, options.fold.of)
        real = sorted(set(real) - set(left_out))
    return real, spare


def _real_part(context: Context, dataset: Dataset, split: Split, image_ids: list[int]) -> _Part:
    """Real images and their accepted things; with masks where they are to be pasted and some have one."""
    instances = dataset.instances_file(split)
    is_pasted_into = context.options.augmentation == "copy-paste"
    masks = _masks(dataset, split) if is_pasted_into else pa.array([])
    has_masks = masks.null_count < len(masks)
    if has_masks:
        instances = context.work / f"objects_{split}.json"
        export_objects(dataset.folder, split, instances)
    if len(image_ids) < len(dataset.split_images(split)):
        some = context.work / f"instances_{split}.json"
        write_some(instances, image_ids, some)
        instances = some
    if context.options.box_noise:
        noisy = context.work / f"noisy_{split}.json"
        write_noisy(instances, context.options.box_noise, noisy)
        instances = noisy
    folder = CocoFolder(instances, dataset.image_folder(split), has_masks)
    pasting = _pasting(len(masks), masks.null_count) if is_pasted_into else None
    return _Part("real" if split == "train" else "spare real", folder, len(image_ids), pasting)


def _masks(dataset: Dataset, split: Split) -> pa.ChunkedArray:
    """Of the things of a split, null where one has none."""
    objects = dataset.object_columns(split, ["mask", "is_thing"])
    return objects.filter(objects["is_thing"])["mask"]


def _pasting(num_things: int, num_without_mask: int) -> str:
    if num_without_mask == num_things:
        return "by boxes"
    if not num_without_mask:
        return "by masks"
    return f"by masks ({num_without_mask} of {num_things} things have none: by boxes)"


def _iterations(context: Context, dataset: Dataset) -> int:
    """The same for any part of the training images; with equal exposure more, by those of the set."""
    options, num_real = context.options, len(dataset.split_images("train"))
    if options.fold:
        num_real -= len(fold_image_ids(dataset, "train", options.fold.number, options.fold.of))
    iterations = options.iterations(num_real)
    if options.budget == "iterations":
        return iterations
    num_synthetic = _synthetic_set(context).provenance.num_rows
    return round(iterations * (1 + options.added_per_real(num_real, num_synthetic)))


def _mixture(options: DetectorTraining, counts: Sequence[int], iterations: int) -> Mixture | None:
    """How the images of the further parts come among the training images; None: as they are many."""
    if len(counts) < 2 or (options.added_share is None and not options.real_only_end):
        return None
    in_proportion = sum(counts[1:]) / sum(counts)
    share = in_proportion if options.added_share is None else options.added_share
    num_mixed = round(iterations * (1 - options.real_only_end)) * options.batch_size
    return Mixture(share, num_mixed)


def _passes(counts: Sequence[int], num_seen: int, mixture: Mixture | None) -> dict[str, float]:
    """How often each image was seen of so many: of all, or of the first part and of the others."""
    if mixture is None:
        return {"passes": num_seen / sum(counts)}
    return {
        "passes": (num_seen - mixture.num_added) / counts[0],
        "added passes": mixture.num_added / sum(counts[1:]),
    }


if __name__ == "__main__":
    join_by_command(Context, _train_as_one_of_several)
