"""What a generator is trained on, and what it starts from."""

import gc
import json
import math
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data.artifacts.digests import file_digest as digest
from data.attributes.options import ATTRIBUTES_NAME, PseudoLabelConfig
from data.errors import ArtifactMissing, ServiceUnavailable
from data.ingest.options import UnlabelledConfig
from data.layouts.options import Protocol
from data.progress import silent
from data.vocabulary.tables import DETECTIONS
from models.generator.modules import load_generator
from models.generator.options import (
    GeneratorConfig,
    NewModelConfig,
    PretrainingConfig,
    ProbeConfig,
    pretraining_options,
)
from models.training.metrics_file import METRICS_NAME, read_metrics
from tasks.catalogue import KINDS
from tasks.execution.context import StepContext
from tasks.execution.data_parallel import join
from tasks.execution.versions import versions
from tasks.kinds import ingest_unlabelled, pseudo_label, train_generator

CONFIG = GeneratorConfig(
    base_model=NewModelConfig(block_out_channels=(8, 16), text_hidden_size=32, decoder_steps=2),
    resolution=64,
    layout_conditioning="both",
    location_grid=8,
    layouts=Protocol(min_objects=3),
    num_steps=2,
    batch_size=2,
    learning_rate=1e-2,
    base_batch_size=2,
    num_warmup_steps=0,
    ema_decay=None,
    probe={"interval": 0},
    num_workers=0,
)
NUM_IMAGES = 4
ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(dataset, tmp_path):
    """Runs a kind of step; returns its artifact and its summary."""

    def make(kind, name, options, **inputs):
        out, work = tmp_path / name, tmp_path / f"work of {name}"
        out.mkdir()
        work.mkdir()
        step = StepContext(
            options, {"ingest": dataset.folder, **inputs}, out, work, name, tmp_path, 1,
            lambda *report: None,
        )  # fmt: skip
        return out, kind.run(step)

    return make


@pytest.fixture
def pretrain(run, tmp_path):
    """Pre-trains on unlabelled Scenes of which every second one has a pseudo-label, or on them blank."""

    def make(boxes, **changes):
        unlabelled, _ = run(
            ingest_unlabelled, "unlabelled", UnlabelledConfig(num_scenes=NUM_IMAGES)
        )
        inputs = {"unlabelled": unlabelled}
        if boxes == "pseudo":
            found = tmp_path / "found"
            found.mkdir()
            row = {"split": "unlabelled", "category_id": 1, "score": 0.9, "detector": "some",
                   "x_min": 10.0, "y_min": 12.0, "x_max": 30.5, "y_max": 40.0}  # fmt: skip
            rows = [{**row, "image_id": image_id} for image_id in range(1, NUM_IMAGES, 2)]
            pq.write_table(pa.Table.from_pylist(rows, DETECTIONS), found / "detections.parquet")
            labels, _ = run(pseudo_label, "labels", PseudoLabelConfig(), **inputs, detections=found)
            inputs["pseudo-labels"] = labels
        options = pretraining_options(CONFIG, PretrainingConfig(num_steps=2, boxes=boxes))
        return run(train_generator, "pretrained", options.model_copy(update=changes), **inputs)

    return make


@pytest.mark.parametrize(("boxes", "things"), [("none", None), ("pseudo", 2)])
def test_a_pre_training_is_on_all_unlabelled_images_and_what_was_found_in_them(
    pretrain, boxes, things
):
    _, summary = pretrain(boxes)
    assert summary["layouts"]["images"] == NUM_IMAGES
    assert summary["layouts"].get("things") == things
    assert "loss_perception" not in summary["progress"][-1]


def test_a_length_in_epochs_is_of_the_layouts_that_the_rule_leaves(run, attributes, tmp_path):
    pq.write_table(attributes, tmp_path / ATTRIBUTES_NAME)
    changes = {"num_epochs": 0.5, "num_steps": 0, "layouts": Protocol(min_objects=5)}
    epochs = CONFIG.model_copy(update=changes)
    out, summary = run(train_generator, "made", epochs, attributes=tmp_path)
    num_images = summary["layouts"]["images"]
    assert 0 < num_images < 12
    assert len(read_metrics(out / METRICS_NAME)) == math.ceil(num_images / 2 / CONFIG.batch_size)


def test_no_file_says_how_long_the_training_took_and_the_manifest_does(run, attributes, tmp_path):
    pq.write_table(attributes, tmp_path / ATTRIBUTES_NAME)
    (one, summary), (other, _) = (
        run(train_generator, name, CONFIG, attributes=tmp_path) for name in ("one", "other")
    )
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    assert {Path("card.md"), Path(METRICS_NAME)} <= {*files}
    assert [str(name) for name in files if digest(one / name) != digest(other / name)] == []
    assert not KINDS["train-generator"].timed
    assert summary["metrics"]["images_per_second"] == summary["progress"][-1]["images_per_second"]


def test_a_training_goes_on_from_the_pre_trained_generator(
    pretrain, run, attributes, dataset, tmp_path
):
    pretrained, _ = pretrain("pseudo")
    pq.write_table(attributes, tmp_path / ATTRIBUTES_NAME)
    still = CONFIG.model_copy(update={"learning_rate": 1e-12, "text_learning_rate": 1e-12})
    given = {"attributes": tmp_path}
    made, _ = run(train_generator, "made", still, **given, pretrained=pretrained)
    alone, _ = run(train_generator, "alone", still, **given)
    before, after, other = (
        load_generator(folder / "generator").model.unet.state_dict()
        for folder in (pretrained, made, alone)
    )
    for name, weights in before.items():
        torch.testing.assert_close(after[name], weights, rtol=0, atol=1e-6)
    assert any(not torch.allclose(other[name], before[name], atol=1e-4) for name in before)
    assert load_generator(made / "generator").encoder.categories == dataset.categories


def test_a_host_of_other_versions_takes_no_part(tmp_path):
    shared = {"versions": versions() | {"torch": "0.4"}}
    (tmp_path / "context.json").write_text(json.dumps(shared))
    with pytest.raises(
        ServiceUnavailable, match=r"this host has torch .*, the run has torch 0\.4:"
    ):
        join(tmp_path, train_generator.Context, train_generator._train_as_one_of_several)


def test_another_host_takes_part_by_one_command(
    run, attributes, dataset, tmp_path, run_on_two_hosts, by_command
):
    pq.write_table(attributes, tmp_path / ATTRIBUTES_NAME)
    config = CONFIG.model_copy(update={"mixed_precision": "no"})
    alone, _ = run(train_generator, "alone", config, attributes=tmp_path)
    with pytest.raises(ArtifactMissing, match="no training waits there"):
        join(tmp_path, train_generator.Context, train_generator._train_as_one_of_several)
    inputs = {"ingest": dataset.folder, "attributes": tmp_path}
    out = run_on_two_hosts(train_generator, config, inputs, by_command)
    losses, expected = (
        [row["loss"] for row in read_metrics(item / METRICS_NAME)] for item in (out, alone)
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    assert (out / "generator").is_dir()


def test_a_probe_draws_what_is_trained_on(dataset, attributes, tmp_path):
    pq.write_table(attributes, tmp_path / ATTRIBUTES_NAME)
    rule = Protocol(min_area_fraction=0.06)
    options = CONFIG.model_copy(update={"layouts": rule, "probe": ProbeConfig(interval=1)})
    inputs = {"ingest": dataset.folder, "attributes": tmp_path}
    step = StepContext(options, inputs, tmp_path, tmp_path, "key", tmp_path, 1, silent)
    probe = train_generator._new_probe(step)
    shares = [np.prod(item.boxes_normalized[:, 2:] - item.boxes_normalized[:, :2], axis=1)
              for item in probe._layouts]  # fmt: skip
    assert np.concatenate(shares).min() > rule.min_area_fraction


def test_the_step_holds_no_model_while_its_processes_train(
    dataset, attributes, tmp_path, monkeypatch
):
    pq.write_table(attributes, tmp_path / ATTRIBUTES_NAME)
    options = CONFIG.model_copy(update={"num_processes": 2})
    inputs = {"ingest": dataset.folder, "attributes": tmp_path}
    step = StepContext(options, inputs, tmp_path, tmp_path, "key", tmp_path, 1, silent)

    made, create = [], train_generator._new_generator

    def noted(*arguments):
        generator = create(*arguments)
        made.append(weakref.ref(generator.model.unet))
        return generator

    def look(*_):
        gc.collect()
        raise InterruptedError(made[0]() is None)

    monkeypatch.setattr(train_generator, "_new_generator", noted)
    monkeypatch.setattr(train_generator, "train_in_processes", look)
    with pytest.raises(InterruptedError, match="True"):
        train_generator.run(step)
