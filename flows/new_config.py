"""Options for a data set of a user's, written as a TOML file that says why they are as they are."""

import json
import math
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data.errors import InvalidConfig
from data.ingest.survey import SMALL_SIDE, fitting_resolution, fitting_sides
from flows.own_data import MOST, VAL_SHARE, Found, NewConfig, Parts, look, split_file
from flows.run_config import RunConfig, build_run

PRESET = "fine-tune"
"""That the options are chosen for."""

_PROMPT_OBJECTS = 18
"""That fit a prompt of 77 tokens: five for its start and end, four for an object whose name is one."""

_FEW_IMAGES = 1000
"""Under which a detector knows what it was trained on nearly by heart: docs/measured.md."""

_NUM_FOLDS = 3
_MOST_STEPS = 20_000
"""Of a training, that a preset's passes are not to exceed: tiles may be thirty times as many as images."""

_FEWEST_STEPS = 10_000
"""Of the generator's training, however few layouts a preset's passes are over."""

_WIDTH = 110


def write_config(new: NewConfig, num_workers: int) -> list[str]:
    """Look at a data set, split it if it is one file, and write its options.

    Returns:
        What a user should know of it.

    Raises:
        InvalidDataset: it has no usable image or object, or cannot be split.
        InvalidConfig: a file is there already, cannot be written or is not to be TOML, the expression is
            none, or an option has no effect beside the others.
    """
    if new.val and new.group_by:
        raise InvalidConfig(
            "--group-by says how images are split, but --val is given: leave one out"
        )
    if new.val_images and not new.val:
        raise InvalidConfig("--val-images needs --val, the COCO file of these images")
    _require_free(new)
    parts = Parts({}, None, None) if new.val else split_file(new, num_workers)
    new = replace(new, group_by=parts.group_by)
    with TemporaryDirectory() as folder:
        sources = new.splits
        for name, text in parts.texts.items():
            path = Path(folder, f"{name}.json")
            path.write_text(text)
            sources[name] = sources[name].model_copy(update={"instances": path})
        found = replace(look(sources, Path(folder), num_workers), grouping=parts.grouping)
    files = {new.splits[name].instance_files[0]: text for name, text in parts.texts.items()}
    files[new.out] = "\n".join([*_lines(new, found), ""])
    try:
        new.out.parent.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text)
    except OSError as error:
        raise InvalidConfig(
            f"--out: {error.filename} cannot be written: {error.strerror}"
        ) from error
    return list(found.notes())


def _require_free(new: NewConfig) -> None:
    if new.out.suffix != ".toml":  # it might have the name of a part
        raise InvalidConfig(f"--out {new.out} is to be a TOML file: give a name that ends in .toml")
    for path in filter(Path.exists, new.files):
        given = [item for item in (new.instances, new.val) if item and item.exists()]
        if any(path.samefile(item) for item in given):
            raise InvalidConfig(f"{path} would be written over: give --out in another folder")
        if not new.force:
            raise InvalidConfig(f"{path} is there: give another --out, or --force to replace it")


def _lines(new: NewConfig, found: Found) -> Iterator[str]:
    preset = build_run(PRESET, {})
    yield from _comment(
        f"Options for `detdiffusion run {PRESET} --config {new.out}`, over those of the preset. Whether all "
        f"runs, small and short: `detdiffusion run smoke --config {new.out}`. Paths are seen from the folder "
        "of the call."
    )
    for note in found.notes():
        yield from _comment(f"- {note}.")
    yield from _ingest_lines(new, found)
    yield from _layout_lines(found)
    yield from _attribute_lines(found)
    yield from _generator_lines(found, preset)
    yield from _detector_lines(found, preset)


def _ingest_lines(new: NewConfig, found: Found) -> Iterator[str]:
    yield from ("", "[ingest]")
    if new.val is None:
        together = f"what {new.group_by!r} matches alike stays together" if new.group_by else (
            "each image for itself; frames of a film or crops of a picture belong together: --group-by"
        )  # fmt: skip
        yield from _comment(
            f"{new.instances} was split by digests of names, {VAL_SHARE:.0%} for validation: {together}."
        )
    for name, split in new.splits.items():
        files = f"instances = {_text(split.instance_files[0])}, images = {_text(split.images)}"
        yield f"{name} = {{ {files} }}"
    if new.group_by:
        yield from _comment("Also in folds, and in what intervals are over.")
        yield f"group_by = {json.dumps(new.group_by, ensure_ascii=False)}"
    if found.stated.exif == "stored":
        yield from _comment(
            "EXIF turns images, and the sizes that the files state are of the images as they are stored: so "
            "are boxes and masks taken to be, and are turned with the images."
        )
        yield 'exif = "stored"'
    if not found.has_masks:
        yield 'masks = "none"'
    width, height = found.whole["train"].median_size
    resolution = fitting_resolution(width, height)
    side = float(np.median(found.whole["train"].object_shares)) * resolution
    rule = (
        f"Squashed to {resolution} pixels, images of {width} × {height} (median) show half of the objects "
        f"with less than {side:.0f} pixels of side; tiles are for less than {SMALL_SIDE}"
    )
    if found.tile is None:
        yield from _comment(f"{rule}, in images larger than eight such objects: none here.")
    else:
        yield from _comment(f"{rule}, and are as large as eight such objects.")
        yield f"tile = {{ size = {found.tile.size}, overlap = {found.tile.overlap:g} }}"


def _layout_lines(found: Found) -> Iterator[str]:
    train = found.shown["train"]
    counts = train.objects_per_image
    tenth, half, most = (train.most_objects(share) for share in (0.1, 0.5, MOST))
    of_all = f"of the {np.count_nonzero(counts)} of {len(counts)} to train on that have some"
    yield from ("", "[layouts]")
    yield from _comment(
        f"Objects {'a tile' if found.tile else 'an image'}, {of_all}: {tenth} (a tenth have no more), "
        f"{half} (half), {most} (nine tenths), at most {counts.max()}. The generator learns and draws "
        "layouts up to the nine tenths of the split that has more:"
    )
    yield f"max_objects = {found.max_objects}"
    if found.max_objects > _PROMPT_OBJECTS:
        yield from _comment(
            f"A prompt has room for {_PROMPT_OBJECTS} at most, the largest: a smaller number, or smaller "
            "tiles, leave fewer things unnamed."
        )


def _attribute_lines(found: Found) -> Iterator[str]:
    count = len(found.whole["train"].objects_per_image)
    if count < _NUM_FOLDS:
        return
    few = count < _FEW_IMAGES
    known = (
        f"knows {count} images that it learnt from nearly by heart, and finds hardly any of their things hard"
        if few
        else "finds more in images that it learnt from; by how much says the hard share of both splits"
    )
    yield from ("", "[extract_attributes.scoring]")
    yield from _comment(
        f"A detector {known}. With folds each is scored by one that did not see it, at {_NUM_FOLDS} more "
        "trainings."
    )
    yield f"{'' if few else '# '}num_folds = {_NUM_FOLDS}"


def _generator_lines(found: Found, preset: RunConfig) -> Iterator[str]:
    generator, counts = preset.train_generator, found.shown["train"].objects_per_image
    num_layouts = int(((counts > 0) & (counts <= found.max_objects)).sum())
    most = _most_epochs(generator.num_epochs, generator.batch_size, num_layouts)
    epochs = max(most, math.ceil(_FEWEST_STEPS * generator.batch_size / max(num_layouts, 1)))
    steps = generator.model_copy(update={"num_epochs": epochs}).in_steps(num_layouts).num_steps
    why = "the text encoder's new words, easy and hard among them, need steps, not epochs"
    width, height = _size(found)
    resolution = fitting_resolution(width, height)
    yield from ("", "[train_generator]")
    yield from _comment(
        "base_model: a folder of Stable Diffusion v1.5, here or by --set; `smoke` keeps its own tiny one."
    )
    yield '# base_model = "stable-diffusion-v1-5"'
    yield from _comment(
        f"num_epochs: {_of(epochs, generator.num_epochs)} are {steps} steps of {generator.batch_size}, of "
        f"{num_layouts} layouts{f': {why}' if epochs > most else ''}."
    )
    yield f"{'# ' if epochs == generator.num_epochs else ''}num_epochs = {epochs:g}"
    yield from _comment(f"Of 256 and 512, the side nearer to {width} × {height} pixels (median).")
    yield f"{'' if resolution != generator.resolution else '# '}resolution = {resolution}"
    if resolution != generator.resolution:
        guidance = build_run(f"coco-{resolution}", {}).synthesize.sampling.guidance_scale
        for name in ("train_generator.probe.sampling", "synthesize.sampling"):
            yield from ("", f"[{name}]", *_comment(f"Released for {resolution} pixels."))
            yield f"guidance_scale = {guidance}"


def _detector_lines(found: Found, preset: RunConfig) -> Iterator[str]:
    width, height = _size(found)
    sides = fitting_sides(width, height, preset.train_detector.image_size)
    num_images = len(found.shown["train"].image_sizes)
    for name, detector in (
        ("train_detector", preset.train_detector),
        ("train_scorer", preset.train_scorer),
        ("retrain.detector", preset.retrain.detector),
    ):
        lines: list[str] = []
        if name != "train_scorer" and sides != detector.image_size:
            lines += _comment(
                f"Twice {width} × {height} pixels (median), which keeps small objects."
            )
            lines += [f"image_size = {list(sides)}"]
        most = _most_epochs(detector.num_epochs, detector.batch_size, num_images)
        if most < detector.num_epochs:
            steps = detector.model_copy(update={"num_epochs": most}).iterations(num_images)
            lines += _comment(
                f"{_of(most, detector.num_epochs)} are {steps} steps of {detector.batch_size}."
            )
            lines += [f"num_epochs = {most:g}"]
        if lines:
            yield from ("", f"[{name}]", *lines)


def _most_epochs(epochs: float, batch_size: int, num_images: int) -> float:
    """A preset's passes over so many images, or whole ones whose steps are not too many.

    >>> _most_epochs(24, 8, 1_600), _most_epochs(24, 8, 40_000)
    (24, 4)
    """
    return min(epochs, max(_MOST_STEPS * batch_size // max(num_images, 1), 1))


def _of(given: float, epochs: float) -> str:
    if given == epochs:
        return f"the preset's {epochs:g}"
    return f"{given:g} {'of' if given < epochs else 'in place of'} the preset's {epochs:g}"


def _size(found: Found) -> tuple[int, int]:
    """Width and height of what is trained on, medians."""
    return found.shown["train"].median_size


def _comment(text: str) -> list[str]:
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return textwrap.wrap(printable, _WIDTH, initial_indent="# ", subsequent_indent="#   ")


def _text(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
