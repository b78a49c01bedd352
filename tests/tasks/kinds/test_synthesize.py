"""Synthetic sets: what they hold, and what a killed step or a smaller batch leaves of them."""

import gc
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.coco.image_sets import SyntheticSet
from data.layouts.layout import count_objects, read_layouts, unseen_things
from data.layouts.protocols import PROTOCOLS
from data.vocabulary.images import read_rgb
from flows.run_config import build_run
from models.generator.options import SamplingConfig, SyntheticSetOptions
from tasks.execution.context import StepContext
from tasks.kinds import synthesize

SAMPLING = SamplingConfig(sampler="unipc", num_inference_steps=2, batch_size=3)


def read_rgb_array(path):
    return np.asarray(read_rgb(path)).astype(int)


@pytest.fixture
def context(dataset, attributes, new_generator, tmp_path):
    from models.generator.modules import save_generator

    pq.write_table(attributes, tmp_path / "attributes.parquet")
    save_generator(new_generator(), tmp_path / "generator")
    (tmp_path / "out").mkdir()

    def make(sampling=SAMPLING, progress=lambda *report: None, of=dataset, **options):
        return StepContext(
            options=SyntheticSetOptions(split="val", sampling=sampling, **options),
            inputs={"ingest": of.folder, "attributes": tmp_path, "generator": tmp_path},
            out=tmp_path / "out",
            work=tmp_path,
            key="key",
            root=tmp_path,
            num_workers=1,
            progress=progress,
        )

    return make


def test_a_set_is_a_coco_data_set_with_its_provenance(context, dataset):
    step = context(policy="hard", images_per_layout=2, num_layouts=3)
    summary = synthesize.run(step)
    made = SyntheticSet(step.out)
    document = json.loads(made.instances.read_text())
    assert summary["counts"]["images"] == len(document["images"]) == 6
    assert {item["attribute"] for item in document["annotations"]} == {"hard"}
    assert [key for key, _ in made.image_set.images] == [1, 2, 3, 4, 5, 6]
    assert len(made.source_image_ids) == 3
    for row, path in zip(document["images"], made.image_set.images, strict=True):
        with Image.open(path[1]) as picture:
            assert picture.size == (row["width"], row["height"])


@pytest.mark.parametrize(
    ("image_size", "sizes"),
    [
        ("generator", [(74, 55), (55, 74), (114, 36), (48, 36)]),
        ("source", [(400, 300), (300, 400), (640, 200), (48, 36)]),
    ],
)
def test_files_and_boxes_are_of_the_size_asked_for(context, photographs, image_size, sizes):
    step = context(of=photographs, image_size=image_size)
    synthesize.run(step)
    made = SyntheticSet(step.out)
    document = json.loads(made.instances.read_text())
    written = {item["id"]: (item["width"], item["height"]) for item in document["images"]}
    assert list(written.values()) == (2 * sizes)[:6]
    for image_id, path in made.image_set.images:
        with Image.open(path) as picture:
            assert picture.size == written[image_id]
    source_sizes = {
        row["image_id"]: (row["width"], row["height"]) for row in photographs.split_images("val")
    }
    files = {row["source_image_id"]: row["image_id"] for row in made.provenance.to_pylist()}
    expected = []
    for item in json.loads(photographs.instances_file("val").read_text())["annotations"]:
        source, file = source_sizes[item["image_id"]], written[files[item["image_id"]]]
        x, y = file[0] / source[0], file[1] / source[1]
        left, top, width, height = item["bbox"]
        expected.append([left * x, top * y, width * x, height * y])
    boxes = [item["bbox"] for item in document["annotations"]]
    np.testing.assert_allclose(sorted(boxes), sorted(expected), atol=1e-9)
    areas = [item["area"] for item in document["annotations"]]
    np.testing.assert_allclose(areas, [box[2] * box[3] for box in boxes])


def test_a_killed_step_ends_as_one_that_was_not(context, tmp_path):
    class Killed(Exception):
        """Stands for the end of the process."""

    def stop(done, total, status):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        synthesize.run(context(progress=stop))
    gc.collect()  # the iterator's threads have ended
    folder = tmp_path / "out" / "images"
    (folder / "000000000005.png").unlink()  # of the batch that was in flight
    (folder / "000000000006.tmp").write_bytes(b"half")
    first = [folder / f"{number:012d}.png" for number in (1, 2, 3)]
    times = [path.stat().st_mtime_ns for path in first]
    reports = []
    synthesize.run(context(progress=lambda *report: reports.append(report)))
    assert reports == [(6, 6, "images")]
    assert sorted(path.name for path in folder.iterdir()) == [f"{k:012d}.png" for k in range(1, 7)]
    assert [path.stat().st_mtime_ns for path in first] == times


def test_a_smaller_batch_goes_on_and_draws_the_same_images(context, tmp_path):
    """After an out-of-memory the finished images stay; rounding alone may differ."""
    synthesize.run(context())
    folder = tmp_path / "out" / "images"
    first = {path.name: read_rgb_array(path) for path in folder.iterdir()}
    for name in ("000000000002.png", "000000000005.png"):
        (folder / name).unlink()
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    step = context(sampling=SAMPLING.model_copy(update={"batch_size": 1}))
    assert synthesize.run(step)["batch_size"] == 1
    assert (
        times.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()
    )
    for path in folder.iterdir():
        assert np.abs(read_rgb_array(path) - first[path.name]).max() <= 2


def test_the_precision_is_settled_where_a_set_was_begun(context, tmp_path):
    (tmp_path / "precision.txt").write_text("bf16")
    assert synthesize.run(context())["precision"] == "bf16"
    step = replace(context(), work=tmp_path / "fresh")
    step.work.mkdir()
    fixed = SAMPLING.model_copy(update={"mixed_precision": "no"})
    options = step.options.model_copy(update={"sampling": fixed})
    assert synthesize.run(replace(step, options=options))["precision"] == "no"


def test_counts_of_the_protocols_stand_beside_the_published_ones(dataset):
    for split, name, published in (
        ("train", "synthetic-train", "train2017: 47,429 images, 210,893 objects"),
        ("val", "lama-val", "val2017: 3,097 images"),
    ):
        options = SyntheticSetOptions(split=split, protocol=PROTOCOLS[name])
        row = synthesize._chosen_layouts(dataset, options)
        assert row["published"] == published
        layouts = read_layouts(dataset, None, split, PROTOCOLS[name])
        assert row["images"] == len(layouts)
        assert row["things"] == count_objects(layouts)
        assert row["things"] + row["stuff"] == sum(len(layout.boxes) for layout in layouts)
    plain = synthesize._chosen_layouts(dataset, SyntheticSetOptions(split="train"))
    assert "published" not in plain


@pytest.mark.parametrize("preset", ["coco-256", "coco-512"])
def test_the_coco_presets_draw_what_was_trained_on(preset, dataset):
    run = build_run(preset, {})
    assert run.protocol("val") == PROTOCOLS["lama-val"]
    assert run.protocol("train").min_objects == 3
    for split in ("train", "val"):
        assert unseen_things(dataset, split, run.protocol(split), run.protocol("generator")) is None
