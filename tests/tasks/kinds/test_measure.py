"""Generated images are held against real ones, whatever the size of their files."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.artifacts.manifest import Manifest
from data.coco.image_sets import SyntheticSet
from data.layouts.options import Protocol
from data.vocabulary.tables import ATTRIBUTES, DETECTIONS, GROUPS, write_table
from models.generator.drawing_options import SamplingConfig, SyntheticSetOptions
from models.metrics.options import FEATURES_NAME, MIRRORED, MeasureOptions
from tasks.execution.context import StepContext
from tasks.kinds import synthesize
from tasks.kinds.measure import _Real, _score_rows, _way, run
from tasks.pages import report_tables as tables

LEAST = 0.06
"""Share of its image that a box must have to be asked for."""

NUMBERS = ("num_objects", "recall", "map", "map50", "map75", "map_small", "map_medium", "map_large")


def easy(dataset):
    things = dataset.objects.filter(pc.field("is_thing"))
    return pa.table(
        {
            **{k: things[k] for k in ("split", "object_id", "image_id", "category_id", "is_thing")},
            "best_iou": np.ones(things.num_rows),
            "matched_score": np.ones(things.num_rows, np.float32),
            "matched_category_id": things["category_id"],
            "attribute": ["easy"] * things.num_rows,
        },
        schema=ATTRIBUTES,
    )


@pytest.fixture(params=["generator", "source"])
def generated(request, photographs, new_generator, tmp_path):
    """A set of two images of each photograph's larger things, and the option of its size."""
    from models.generator.modules import save_generator

    write_table(easy(photographs), tmp_path / "attributes.parquet")
    save_generator(new_generator(), tmp_path / "generator")
    (tmp_path / "set").mkdir()
    options = SyntheticSetOptions(
        split="val",
        protocol=Protocol(min_area_fraction=LEAST, min_objects=1),
        images_per_layout=2,
        image_size=request.param,
        sampling=SamplingConfig(sampler="unipc", num_inference_steps=1),
    )
    inputs = {"ingest": photographs.folder, "attributes": tmp_path, "generator": tmp_path}
    synthesize.run(
        StepContext(
            options, inputs, tmp_path / "set", tmp_path, "key", tmp_path, 1, lambda *report: None
        )
    )
    return SimpleNamespace(images=SyntheticSet(tmp_path / "set"), image_size=request.param)


def write_detections(folder, boxes_by_image):
    """Sure detections of COCO boxes, each with its category."""
    folder.mkdir()
    rows = [
        {
            "split": "val", "image_id": image_id, "category_id": category_id, "score": 0.9,
            "x_min": x, "y_min": y, "x_max": x + width, "y_max": y + height, "detector": "perfect",
        }
        for image_id, boxes in boxes_by_image.items()
        for category_id, (x, y, width, height) in boxes
    ]  # fmt: skip
    write_table(pa.Table.from_pylist(rows, DETECTIONS), folder / "detections.parquet")
    return folder


def labels(instances):
    """Category and box of every annotation, by image."""
    document = json.loads(instances.read_text())
    found = {item["id"]: [] for item in document["images"]}
    for item in document["annotations"]:
        found[item["image_id"]].append((item["category_id"], item["bbox"]))
    return found


def seen_in_files(dataset, synthetic):
    """All that is labelled in the real images, where it stands in the generated images' files."""
    real, paths = labels(dataset.instances_file("val")), dict(dataset.image_paths("val"))
    found = {}
    for row in pq.read_table(synthetic.provenance_file).to_pylist():
        source = row["source_image_id"]
        with (
            Image.open(paths[source]) as photograph,
            Image.open(synthetic.image_folder / row["file_name"]) as picture,
        ):
            x, y = (a / b for a, b in zip(picture.size, photograph.size, strict=True))
        found[row["image_id"]] = [
            (label, (box[0] * x, box[1] * y, box[2] * x, box[3] * y)) for label, box in real[source]
        ]
    return found


def test_a_perfect_detector_scores_alike_in_real_and_generated_images(
    photographs, generated, tmp_path
):
    made = generated.images
    asked, everything = labels(made.instances), seen_in_files(photographs, made)
    real = labels(photographs.instances_file("val"))
    pixels = {
        row["image_id"]: row["width"] * row["height"] for row in photographs.split_images("val")
    }
    chosen = {
        key: [(label, box) for label, box in boxes if box[2] * box[3] >= LEAST * pixels[key]]
        for key, boxes in real.items()
    }
    assert sum(map(len, chosen.values())) < sum(map(len, real.values()))
    given = {
        "asked/real": chosen,
        "asked/origin": asked,
        "everything/real": real,
        "everything/origin": everything,
    }
    inputs = {
        f"scores/{name}": write_detections(tmp_path / name.replace("/", "-"), boxes)
        for name, boxes in given.items()
    }
    context = StepContext(
        MeasureOptions(), {"ingest": photographs.folder, **inputs}, tmp_path, tmp_path, "key",
        tmp_path, 1, lambda *report: None,
    )  # fmt: skip
    rows = {
        (row["scorer"], row["protocol"], row["images"]): row
        for row in _score_rows(context, {"origin": made})
    }
    for scorer, protocol in (("asked", "layout"), ("everything", "lama")):
        of_real, of_generated = (
            {name: rows[scorer, protocol, images][name] for name in NUMBERS}
            for images in ("real", "origin")
        )
        assert of_generated["map"] == pytest.approx(1)
        assert of_generated["recall"] == 1
        assert {k: v is None for k, v in of_real.items()} == {
            k: v is None for k, v in of_generated.items()
        }
        of_generated["num_objects"] /= 2
        assert of_generated == pytest.approx(of_real)


def test_what_became_of_generated_images_is_said(generated, photographs):
    context = SimpleNamespace(
        manifest=lambda name: SimpleNamespace(options={"image_size": generated.image_size})
    )
    what = {"generator": "proportions", "source": "size"}[generated.image_size]
    assert _way(context, {"origin": generated.images}, 64) == (
        f"generated at 64 px, bicubic to the real image's {what} and back"
    )
    document = json.loads(generated.images.instances.read_text())
    for item in document["images"]:
        item["width"] = item["height"] = 64
    generated.images.instances.write_text(json.dumps(document))
    assert _way(context, {"origin": generated.images}, 64) == "generated at 64 px"


@pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot
def test_detectors_learn_the_same_boxes_from_real_and_generated_images(
    photographs, generated, tmp_path
):
    from models.detector.config_files import CocoFolder, build_config
    from models.detector.mmdetection import register_all_modules
    from models.detector.options import DetectorConfig
    from models.detector.seeded_data import SeededConcatDataset

    made, config = generated.images, DetectorConfig(num_epochs=0, num_iterations=1)
    parts = [
        CocoFolder(photographs.instances_file("val"), photographs.image_folder("val")),
        CocoFolder(made.instances, made.image_folder),
    ]
    register_all_modules()
    built = build_config(config, parts, photographs.things, tmp_path)
    images = SeededConcatDataset(built.train_dataloader.dataset.datasets, 0)
    learnt = {}
    for place in range(len(images)):
        sample = images[len(images) * place + place]["data_samples"]
        height, width = sample.img_shape
        boxes = sample.gt_instances.bboxes.numpy() / [width, height, width, height]
        if sample.flip:
            boxes[:, [0, 2]] = 1 - boxes[:, [2, 0]]
        learnt[sample.img_path] = boxes
    real = dict(photographs.image_paths("val"))
    compared = 0
    for row in made.provenance.to_pylist():
        of_real = learnt[str(real[row["source_image_id"]])]
        for box in learnt[str(made.image_folder / row["file_name"])]:
            assert np.abs(of_real - box).max(axis=1).min() < 1e-6
            compared += 1
    assert compared == len(json.loads(made.instances.read_text())["annotations"])


@pytest.mark.parametrize("generated", ["generator"], indirect=True)
def test_images_of_a_film_are_left_out_together(photographs, generated, tmp_path):
    made = generated.images
    ingested = tmp_path / "ingested"
    shutil.copytree(photographs.folder, ingested)
    inputs = {
        f"scores/asked/{name}": write_detections(tmp_path / name, labels(instances))
        for name, instances in (
            ("real", photographs.instances_file("val")),
            ("origin", made.instances),
        )
    }
    context = StepContext(
        MeasureOptions(), {"ingest": ingested, **inputs}, tmp_path, tmp_path, "key", tmp_path, 1,
        lambda *report: None,
    )  # fmt: skip

    def intervals():
        return [row["recall_low"] for row in _score_rows(context, {"origin": made})]

    assert None not in intervals()
    ids = [row["image_id"] for row in photographs.split_images("val")]
    rows = [{"split": "val", "image_id": key, "group_id": ids[0]} for key in ids]
    write_table(pa.Table.from_pylist(rows, GROUPS), ingested / "groups.parquet")
    assert set(intervals()) == {None}  # all are of one


@pytest.mark.parametrize("generated", ["generator"], indirect=True)
def test_where_nothing_is_asked_for_there_is_no_recall(photographs, generated, tmp_path):
    made = generated.images
    document = json.loads(made.instances.read_text()) | {"annotations": []}
    made.instances.write_text(json.dumps(document))
    inputs = {
        f"scores/asked/{name}": write_detections(tmp_path / name, found)
        for name, found in (
            ("real", labels(photographs.instances_file("val"))),
            ("origin", seen_in_files(photographs, made)),
        )
    }
    context = StepContext(
        MeasureOptions(), {"ingest": photographs.folder, **inputs}, tmp_path, tmp_path, "key",
        tmp_path, 1, lambda *report: None,
    )  # fmt: skip
    rows = _score_rows(context, {"origin": made})
    recalls = {(row["protocol"], row["images"]): row["recall"] for row in rows}
    assert recalls == {
        ("layout", "real"): None, ("layout", "origin"): None, ("lama", "real"): 1, ("lama", "origin"): 1,
    }  # fmt: skip
    assert tables.recalls(rows) == {}
    assert tables.recall_sentences(rows) == [
        "By the asked, there is no recall: the layouts ask for nothing."
    ]


def write_features(folder, image_ids, rng):
    """Random features, and the manifest of the step that would have extracted them."""
    folder.mkdir()
    columns = {name: list(rng.normal(size=(len(image_ids), 2))) for name in ("features", MIRRORED)}
    pq.write_table(pa.table({"image_id": image_ids, **columns}), folder / FEATURES_NAME)
    summary = {"extractor": "random", "features": 2, "resolution": 64, "resize": "bicubic"}
    return write_manifest(folder, summary=summary)


def write_manifest(folder, summary=None, options=None):
    folder.mkdir(exist_ok=True)
    manifest = Manifest(
        kind="kind", key="key", versions={}, options=options or {}, foreign={}, inputs={}, files={},
        summary=summary or {}, environment={}, seconds=0, peak_memory_bytes=0, created_at="",
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    return folder


@pytest.mark.parametrize("generated", ["generator"], indirect=True)
def test_a_judge_that_finds_nothing_is_told(photographs, generated, tmp_path):
    made, rng = generated.images, np.random.default_rng(0)
    write_manifest(made.folder, options={"image_size": "generator"})
    ids = {
        "train": [row["image_id"] for row in photographs.split_images("train")],
        "real": [row["image_id"] for row in photographs.split_images("val")],
        "origin": list(made.source_of),
    }
    inputs = {
        "ingest": photographs.folder,
        "attributes": write_manifest(tmp_path / "made", summary={"hard_share": {"train": 0.5}}),
        "detections": tmp_path,
        "sets/origin": made.folder,
        "scores/scorer/real": write_detections(tmp_path / "nothing", {}),
        "scores/scorer/origin": tmp_path / "nothing",
        "scores/detector/real": write_detections(
            tmp_path / "all", labels(photographs.instances_file("val"))
        ),
        "scores/detector/origin": tmp_path / "nothing",
        **{f"features/{name}": write_features(tmp_path / f"of {name}", of, rng) for name, of in ids.items()},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({"map": 0.5, "map50": 0.5}))
    (tmp_path / "out").mkdir()
    summary = run(
        StepContext(
            MeasureOptions(), inputs, tmp_path / "out", tmp_path, "key", tmp_path, 1,
            lambda *report: None,
        )
    )  # fmt: skip
    (told,) = summary["warnings"]
    assert told.startswith("The independent detector finds none of the ")
    assert f"**{told}.**" in (tmp_path / "out" / "card.md").read_text()
    assert summary["results"]["recall_real"] == 0


def test_no_interval_reaches_where_its_number_cannot_be():
    real = np.random.default_rng(0).normal(size=(40, 2))
    row = _Real(real, {}).row(
        "origin", real[::-1] * 1.01, np.arange(40)
    )  # nearly the same images: at the edge
    for name in ("precision", "recall", "coverage"):
        assert 0 <= row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] <= 1
    for name in ("frechet_distance", "density"):
        assert 0 <= row[f"{name}_low"] <= row[name]
    assert row["kid_low"] < 0


def test_every_image_of_a_layout_counts(tmp_path):
    rng = np.random.default_rng(0)
    real, ids = rng.normal(size=(40, 2)), np.arange(1, 41)
    drawn = np.vstack([rng.normal(size=(20, 2)), rng.normal(size=(20, 2)) + 5])
    columns = {"image_id": ids[::-1], "source_image_id": np.repeat(np.arange(20), 2)}
    pq.write_table(pa.table(columns), tmp_path / "provenance.parquet")
    layouts = np.array([SyntheticSet(tmp_path).source_of[key] for key in ids.tolist()])
    assert layouts.tolist() == np.repeat(np.arange(20), 2)[::-1].tolist()
    row, each = (_Real(real, {}).row("origin", drawn, by) for by in (layouts, np.arange(40)))
    for name in ("frechet_distance", "kid", "precision", "recall", "density", "coverage"):
        assert row[name] == each[name]
    assert row["kid_low"] != each["kid_low"]  # those of one layout are left out together
    with pytest.raises(ValueError, match="40 images, but 20 clusters"):
        _Real(real, {}).row("origin", drawn, layouts[:20])


def test_the_floor_is_the_mean_of_several_draws():
    rng = np.random.default_rng(0)
    side, others = _Real(rng.normal(size=(40, 2)), {}), rng.normal(size=(70, 2))
    ids = np.arange(70)
    (floor,) = side.floor_rows(others, ids, 30)
    order = np.random.default_rng(0).permutation(70)
    rows = [side.row("", others[order[i : i + 30]], np.arange(30)) for i in (0, 30)]
    for name in ("frechet_distance", "kid", "coverage"):
        assert floor[name] == pytest.approx(np.mean([row[name] for row in rows]))
        assert floor[f"{name}_low"] < floor[name] < floor[f"{name}_high"]
    assert (floor["draws"], floor["num_images"]) == (2, 30)
    (single,) = side.floor_rows(others, ids, 40)
    assert single["draws"] == 1
    assert single["kid_low"] < single["kid"] < single["kid_high"]


def test_too_few_images_have_no_distances_and_no_floor():
    rng = np.random.default_rng(0)
    side, others = _Real(rng.normal(size=(4, 2)), {}), rng.normal(size=(12, 2))
    (floor,) = side.floor_rows(others, np.arange(12), 4)
    assert floor["draws"] == 3
    for row in (floor, side.row("origin", others[:4], np.arange(4))):
        assert {row[name] for name in ("frechet_distance", "kid", "coverage", "kid_low")} == {None}
