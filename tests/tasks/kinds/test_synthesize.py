"""Synthetic sets: what they hold, and what a killed step or a smaller batch leaves of them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.artifacts.options import Execution
from data.coco.image_sets import SyntheticSet
from data.errors import InvalidConfig
from data.layouts.layout import count_objects, read_layouts, unseen_things
from data.layouts.options import PROTOCOLS, Protocol
from data.scenes.layout_scene import draw_layout
from data.vocabulary.images import read_rgb
from data.vocabulary.tables import Dataset
from flows.nodes import set_node
from flows.run_config import build_run
from models.generator.drawing_options import SamplingConfig, SyntheticSetOptions
from tasks.execution.context import WARNINGS, StepContext
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

    def make(sampling=SAMPLING, progress=lambda *report: None, of=dataset, split="val", **options):
        return StepContext(
            options=SyntheticSetOptions(split=split, sampling=sampling, **options),
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


@pytest.mark.parametrize(
    "options",
    [
        {"images_per_layout": 2},
        {"num_layouts": 3},
        {"num_layouts": 100},
        {"protocol": Protocol(min_objects=5)},
        {"num_layouts": 9, "layout_source": "jittered"},
        {"protocol": Protocol(min_objects=5), "layout_source": "recombined"},
    ],
)
def test_how_many_images_a_set_will_have_is_known_before(context, dataset, options):
    step = context(**options)
    planned = synthesize._planned(step, dataset, step.out)
    assert step.options.num_drawn(dataset) == len(planned) > 0


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def shards_of_3(monkeypatch):
    monkeypatch.setattr(synthesize, "_SHARD_SIZE", 3)


@pytest.mark.usefixtures("shards_of_3")
def test_a_killed_step_ends_as_one_that_was_not(context, tmp_path):
    def stop(done, total, status):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        synthesize.run(context(progress=stop))
    shards, folder = tmp_path / "shards", tmp_path / "out" / "images"
    half = shards / "000000003.half.tmp"
    half.mkdir()
    (half / "000000000004.png").write_bytes(b"half")
    names = [f"{number:012d}.png" for number in range(1, 7)]
    times = [(shards / "000000000" / name).stat().st_mtime_ns for name in names[:3]]
    (shards / "000000000" / names[0]).rename(folder / names[0])  # killed as it gathered the files
    reports = []
    synthesize.run(context(progress=lambda *report: reports.append(report)))
    assert reports == [(3, 6, "images"), (6, 6, "images")]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert [(folder / name).stat().st_mtime_ns for name in names[:3]] == times
    assert not half.exists()


@pytest.mark.parametrize("drawn_by", ["generator", "scenes"])
def test_what_a_resumed_step_trusts_was_on_the_disk_before_it_had_its_name(
    context, drawn_by, monkeypatch
):
    synced, fsync, rename, named = set(), os.fsync, Path.rename, []

    def noted(descriptor):
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def checked(path, target):
        files = list(path.iterdir())
        assert {file.stat().st_ino for file in files} <= synced
        named.extend(file.name for file in files)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", checked)
    synthesize.run(context(drawn_by=drawn_by))
    assert sorted(named) == [*(f"{k:012d}.png" for k in range(1, 7)), "notes.json"]


@pytest.mark.usefixtures("shards_of_3")
@pytest.mark.parametrize("drawn_by", ["generator", "scenes"])
def test_two_workers_draw_what_one_does(context, drawn_by, tmp_path):
    sets = []
    for name, num_workers in (("one", 1), ("two", 2)):
        step = context(drawn_by=drawn_by, execution=Execution(num_workers=num_workers))
        step = replace(step, out=tmp_path / name, work=tmp_path / f"{name} work")
        step.out.mkdir()
        step.work.mkdir()
        synthesize.run(step)
        files = sorted(path for path in step.out.rglob("*") if path.is_file())
        sets.append({str(path.relative_to(step.out)): path.read_bytes() for path in files})
    assert len(sets[0]) == 6 + 3
    assert sets[0] == sets[1]


@pytest.mark.usefixtures("shards_of_3")
def test_a_smaller_batch_goes_on_and_draws_the_same_images(context, tmp_path):
    """After an out-of-memory the finished shards stay; rounding alone may differ."""
    synthesize.run(context())
    folder = tmp_path / "out" / "images"
    first = {path.name: read_rgb_array(path) for path in folder.iterdir()}
    shutil.rmtree(tmp_path / "shards" / "000000003")
    times = {name: (folder / name).stat().st_mtime_ns for name in sorted(first)[:3]}
    step = context(sampling=SAMPLING.model_copy(update={"batch_size": 1}))
    assert synthesize.run(step)["batch_size"] == 1
    assert times == {name: (folder / name).stat().st_mtime_ns for name in times}
    assert {path.name for path in folder.iterdir()} == first.keys()
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


@pytest.mark.parametrize("asked", [False, True])
def test_a_generator_is_compiled_where_that_is_asked_for(context, monkeypatch, asked):
    compiled = []
    monkeypatch.setattr(synthesize, "compile_blocks", compiled.append)
    run = build_run("demo", {"synthesize": {"torch_compile": asked}})
    step = context()
    options = set_node(run, "train", "origin").options
    synthesize._drawer(step.inputs["generator"] / "generator", options, SAMPLING)
    assert len(compiled) == asked


def test_objects_that_a_prompt_has_no_room_for_are_counted(context, new_generator, tmp_path):
    from models.generator.modules import save_generator

    generator = new_generator("tokens", "largest-first", max_prompt_length=16)
    save_generator(generator, tmp_path / "short/generator")
    step = context(num_layouts=3)
    step.inputs["generator"] = tmp_path / "short"
    counts = synthesize.run(step)["counts"]
    made = SyntheticSet(step.out)
    labelled = len(json.loads(made.instances.read_text())["annotations"])
    assert counts["objects"] > labelled
    assert counts["objects that prompts had no room for"] == sum(
        made.provenance["num_omitted"].to_pylist()
    )


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


def without_generator(step):
    inputs = {name: folder for name, folder in step.inputs.items() if name != "generator"}
    return replace(step, inputs=inputs)


def test_the_renderer_of_scenes_needs_no_generator_and_labels_what_is_seen(context, layouts):
    step = without_generator(context(split="train", policy="hard", drawn_by="scenes"))
    summary = synthesize.run(step)
    made = SyntheticSet(step.out)
    document = json.loads(made.instances.read_text())
    rows = made.provenance.to_pylist()
    asked = [layout.with_policy("hard") for layout in layouts]
    drawn = [draw_layout(layout, row["seed"]) for layout, row in zip(asked, rows, strict=True)]
    for (_, path), one in zip(made.image_set.images, drawn, strict=True):
        assert (read_rgb_array(path) == one.image).all()
    labels = [annotation for one in drawn for annotation in one.annotations]
    for item, label in zip(document["annotations"], labels, strict=True):
        assert label.items() <= item.items()
    assert [item["id"] for item in document["annotations"]] == list(range(1, len(labels) + 1))
    assert {item["attribute"] for item in document["annotations"]} == {"hard"}
    hidden = [one.num_hidden for one in drawn]
    assert [row["num_omitted"] for row in rows] == hidden
    assert summary["counts"] == {
        "images": 12,
        "objects": count_objects(layouts),
        "hidden objects": sum(hidden),
    }
    assert len(labels) == count_objects(layouts) - sum(hidden)
    assert [row["source_image_id"] for row in rows] == [layout.image_id for layout in layouts]


@pytest.mark.usefixtures("shards_of_3")
def test_a_killed_rendering_ends_as_one_that_was_not(context, tmp_path):
    def stop(done, total, status):
        if done == 3:
            raise Killed

    options = {"drawn_by": "scenes", "layout_source": "recombined"}
    with pytest.raises(Killed):
        synthesize.run(context(progress=stop, **options))
    folder = tmp_path / "out" / "images"
    drawn = list((tmp_path / "shards").glob("*/*.png"))
    times = {path.name: path.stat().st_mtime_ns for path in drawn}
    assert len(times) == 3
    synthesize.run(context(**options))
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    killed = SyntheticSet(tmp_path / "out")
    whole = replace(context(**options), out=tmp_path / "whole", work=tmp_path / "elsewhere")
    for made in (whole.out, whole.work):
        made.mkdir()
    synthesize.run(whole)
    assert killed.instances.read_text() == SyntheticSet(whole.out).instances.read_text()
    assert killed.provenance.equals(SyntheticSet(whole.out).provenance)
    for path in folder.iterdir():
        assert path.read_bytes() == (whole.out / "images" / path.name).read_bytes()


@pytest.mark.parametrize("source", ["jittered", "recombined", "aimed"])
def test_new_layouts_may_be_more_than_there_are_images(source, context, layouts):
    rule = Protocol(min_area_fraction=0.05, min_objects=2)
    more = {"drawn_by": "scenes", "layout_source": source, "protocol": rule}
    step = context(split="train", num_layouts=30, images_per_layout=2, **more)
    synthesize.run(step)
    rows = SyntheticSet(step.out).provenance.to_pylist()
    assert [row["repeat"] for row in rows] == [0, 1] * 30
    assert {row["layout_source"] for row in rows} == {source}
    assert len({row["seed"] for row in rows}) == 60
    assert {row["source_image_id"] for row in rows} <= {layout.image_id for layout in layouts}
    shares = [row["hard_share"] for row in rows if "hard_share" in row]
    assert len(shares) == (60 if source == "aimed" else 0)
    assert all(0 < share < 1 for share in shares)
    assert ("hard share of such real things, mean" in (step.out / "card.md").read_text()) == bool(
        shares
    )


def test_new_layouts_are_given_to_the_generator_and_are_its_labels(context, dataset):
    step = context(num_layouts=3, layout_source="jittered", policy="easy")
    assert synthesize.run(step)["counts"]["images"] == 3
    made = SyntheticSet(step.out)
    boxes = [item["bbox"] for item in json.loads(made.instances.read_text())["annotations"]]
    real = json.loads(dataset.instances_file("val").read_text())["annotations"]
    assert not {tuple(box) for box in boxes} & {tuple(item["bbox"]) for item in real}
    assert all(row["prompt"] for row in made.provenance.to_pylist())


def test_a_set_may_start_from_its_layouts_real_images(context, dataset, tmp_path):
    def distance(strength):
        steps = SAMPLING.model_copy(update={"num_inference_steps": 20})
        work = tmp_path / str(strength)
        (work / "out").mkdir(parents=True)
        step = context(steps, num_layouts=3, strength=strength)
        step = replace(step, work=work, out=work / "out")
        synthesize.run(step)
        made, real = SyntheticSet(step.out), dict(dataset.image_paths("val"))
        rows = made.provenance.to_pylist()
        assert all(row.get("strength", 1) == strength for row in rows)
        drawn = [read_rgb_array(made.image_folder / row["file_name"]) for row in rows]
        sources = [read_rgb_array(real[row["source_image_id"]]) for row in rows]
        return np.abs(np.subtract(drawn, sources)).mean()

    near, far, noise = distance(0.05), distance(0.5), distance(1)
    assert near < 0.5 * far
    assert far < noise


def test_other_classes_than_those_of_scenes_are_refused(context, dataset, tmp_path):
    shutil.copytree(dataset.folder, tmp_path / "other", ignore=shutil.ignore_patterns("scenes"))
    table = pq.read_table(dataset.folder / "categories.parquet").to_pylist()
    table[0]["name"] = "dragon"
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "other" / "categories.parquet")
    options = SyntheticSetOptions(split="train", drawn_by="scenes")
    options.check(dataset)
    with pytest.raises(InvalidConfig, match="drawn_by=scenes draws ball, crate"):
        options.check(Dataset(tmp_path / "other"))


def test_things_that_no_generator_was_trained_on_are_no_matter_to_the_renderer(dataset):
    trained = Protocol(min_area_fraction=0.1)
    by_generator = SyntheticSetOptions(split="train", trained_on=trained)
    assert "is not trained on" in by_generator.unseen_things(dataset)
    by_renderer = SyntheticSetOptions(split="train", trained_on=trained, drawn_by="scenes")
    assert by_renderer.unseen_things(dataset) is None
    assert (by_generator.num_gpus, by_renderer.num_gpus) == (1, 0)


def test_things_that_training_does_not_see_are_on_the_card(context):
    step = context(num_layouts=2, trained_on=Protocol(min_area_fraction=0.1))
    summary = synthesize.run(step)
    (said,) = summary[WARNINGS]
    assert "is not trained on" in said
    assert f"**Mind that {said}.**" in (step.out / "card.md").read_text()


def test_layouts_that_are_aimed_at_nothing_are_told(context, attributes, tmp_path):
    easy = pa.array(["easy"] * attributes.num_rows, attributes.schema.field("attribute").type)
    column = attributes.schema.get_field_index("attribute")
    step = context(split="train", num_layouts=2, drawn_by="scenes", layout_source="aimed")
    pq.write_table(
        attributes.set_column(column, "attribute", easy), tmp_path / "attributes.parquet"
    )
    assert "aimed at nothing" in " ".join(synthesize.run(step)[WARNINGS])
