"""What detectors are trained on and how long; the trainings themselves run in tests/flows."""

import json
import shutil
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from data.coco.image_sets import SyntheticSet
from data.errors import InvalidConfig
from data.ingest.ingestion import ingest
from data.ingest.options import IngestConfig, ScenesConfig, UnlabelledConfig
from data.ingest.unlabelled import ingest_unlabelled
from data.vocabulary.tables import Dataset, write_table
from flows.presets import PRESETS
from models.detector.detector import Detector
from models.detector.options import DetectorTraining
from models.detector.seeded_data import SeededConcatDataset
from tasks.execution.context import StepContext
from tasks.kinds import train_detector
from tasks.kinds.train_detector import _iterations, _mixture, _parts, _passes, run

NUM_SYNTHETIC = 6


@pytest.fixture(scope="module")
def with_spare(tmp_path_factory):
    out = tmp_path_factory.mktemp("with_spare") / "ingest"
    scenes = ScenesConfig(num_train=12, num_val=4, num_spare=8)
    ingest(IngestConfig(scenes=scenes), out)
    return Dataset(out)


@pytest.fixture(scope="module")
def dataset_with_few_spare(tmp_path_factory):
    out = tmp_path_factory.mktemp("few_spare") / "ingest"
    ingest(IngestConfig(scenes=ScenesConfig(num_train=4, num_val=4, num_spare=2)), out)
    return Dataset(out)


@pytest.fixture
def context(with_spare, tmp_path):
    """A step's context with a synthetic set of six images."""
    synthetic = SyntheticSet(tmp_path / "set")
    synthetic.folder.mkdir()
    write_table(pa.table({"image_id": list(range(NUM_SYNTHETIC))}), synthetic.provenance_file)

    def make(**options):
        length = {"num_epochs": 0, "num_iterations": 90, **options}
        return SimpleNamespace(
            options=DetectorTraining.model_validate(length),
            inputs={"ingest": with_spare.folder, "synthetic": synthetic.folder},
            work=tmp_path,
            out=tmp_path,
            progress=lambda *_: None,
            manifest=lambda name: SimpleNamespace(options={"policy": "hard"}),
        )

    return make


def document_of(part):
    return json.loads(part.folder.annotations.read_text())


@pytest.mark.parametrize(
    ("options", "images", "iterations"),
    [
        ({}, {"real": 12}, 90),
        ({"real_multiple": 0.5}, {"real": 6}, 90),
        ({"real_multiple": 1.5}, {"real": 12, "spare real": 6}, 90),
        ({"images": "real+synthetic"}, {"real": 12, "synthetic (hard)": 6}, 90),
        (
            {"images": "real+synthetic", "budget": "exposure"},
            {"real": 12, "synthetic (hard)": 6},
            135,
        ),
        ({"budget": "exposure"}, {"real": 12}, 135),
        (
            {"images": "real+synthetic", "added_share": 0.25},
            {"real": 12, "synthetic (hard)": 6},
            90,
        ),
        ({"budget": "exposure", "added_share": 0.25}, {"real": 12}, 120),
        ({"budget": "exposure", "real_only_end": 0.5}, {"real": 12}, 108),
        ({"budget": "exposure", "added_share": 0.25, "real_only_end": 0.2}, {"real": 12}, 112),
        ({"images": "synthetic"}, {"synthetic (hard)": 6}, 90),
        ({"images": "real+spare"}, {"real": 12, "spare real": 6}, 90),
        ({"fold": {"number": 0, "of": 3}}, {"real": 8}, 90),
        ({"num_epochs": 3, "num_iterations": 0, "batch_size": 5}, {"real": 12}, 8),
        (
            {"num_epochs": 3, "num_iterations": 0, "batch_size": 5, "real_multiple": 0.5},
            {"real": 6},
            8,
        ),
        ({"num_epochs": 0.1, "num_iterations": 0, "batch_size": 5}, {"real": 12}, 1),
    ],
)
def test_an_arm_has_its_images_and_its_length(context, with_spare, options, images, iterations):
    given = context(**options)
    parts = _parts(given, with_spare)
    assert {part.what: part.count for part in parts} == images
    assert _iterations(given, with_spare) == iterations
    for part in parts:
        if not part.what.startswith("synthetic"):
            assert len(document_of(part)["images"]) == part.count


@pytest.mark.parametrize("share", [None, 0.25, 0.7])
@pytest.mark.parametrize("end", [0.0, 0.1, 0.5])
def test_with_equal_exposure_each_real_image_is_seen_as_often(context, with_spare, share, end):
    given = context(
        images="real+synthetic", budget="exposure", added_share=share, real_only_end=end
    )
    iterations = _iterations(given, with_spare)
    mixture = _mixture(given.options, [12, 6], iterations)
    passes = _passes([12, 6], iterations * 8, mixture)
    real, added = passes["passes"], passes.get("added passes", passes["passes"])
    assert (mixture is None) == (share is None and not end)
    assert real == pytest.approx(90 * 8 / 12, abs=8 / 12)
    assert 12 * real + 6 * added == pytest.approx(iterations * 8)
    assert 6 * added / (iterations * 8) == pytest.approx((1 - end) * (share or 1 / 3), abs=0.01)


@pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot
def test_the_card_says_at_which_rate(context, tmp_path):
    tiny = {**PRESETS["demo"]["train_scorer"], "learning_rate": None, "num_iterations": 1}
    never = {"train_dataloader.dataset.datasets.0.pipeline.3.prob": 0.0}
    run(context(**tiny | {"overrides": tiny["overrides"] | never}))
    names, _, values = (tmp_path / "card.md").read_text().splitlines()[-3:]
    card = dict(zip(names.split(" | "), values.split(" | "), strict=True))
    assert card["learning rate"] == "0.002"  # 0.004 at 16, says its config


@pytest.mark.filterwarnings("ignore")  # likewise
def test_a_share_is_what_is_read_and_what_the_summary_says(context, with_spare, monkeypatch):
    tiny = {
        **PRESETS["demo"]["train_scorer"],
        "num_iterations": 4,
        "batch_size": 4,
        "num_workers": 0,
    }
    mixture = {"images": "real+spare", "added_share": 0.25, "real_only_end": 0.5}
    read, seen = SeededConcatDataset.__getitem__, []

    def noted(images, code):
        seen.append(code % len(images))
        return read(images, code)

    monkeypatch.setattr(SeededConcatDataset, "__getitem__", noted)
    summary = run(context(**tiny, **mixture))
    assert [sum(k >= 12 for k in seen[i : i + 4]) for i in range(0, 16, 4)] == [1, 1, 0, 0]
    assert summary == {
        "images": {"real": 12, "spare real": 6}, "iterations": 4,
        "passes": 14 / 12, "added passes": 2 / 6,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # likewise
def test_several_processes_train_one_detector_on_one_host_or_two(
    with_spare, tmp_path, forked_ranks, run_on_two_hosts, by_fork
):
    options = PRESETS["demo"]["train_scorer"] | {
        "num_epochs": 0,
        "num_iterations": 2,
        "batch_size": 4,
        "num_processes": 2,
    }
    out, work, reports = tmp_path / "out", tmp_path / "work", []
    out.mkdir()
    work.mkdir()
    step = StepContext(
        DetectorTraining.model_validate(options), {"ingest": with_spare.folder}, out, work, "key",
        tmp_path, 2, lambda *report: reports.append(report),
    )  # fmt: skip
    assert run(step) == {"images": {"real": 12}, "iterations": 2, "passes": 8 / 12}
    assert reports[-1][:2] == (2, 2)
    assert reports[-1][2].startswith("loss ")
    assert dict(Detector.load(out / "detector").categories) == with_spare.things
    apart = run_on_two_hosts(train_detector, step.options, step.inputs, by_fork)
    found, expected = (load_file(item / "detector" / "model.safetensors") for item in (apart, out))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_fewer_spare_images_than_synthetic_ones_are_refused(context, dataset_with_few_spare):
    with pytest.raises(InvalidConfig, match=r"the synthetic set has, 6: there are 2;"):
        _parts(context(images="real+spare"), dataset_with_few_spare)


def test_a_verified_set_takes_the_place_of_the_labels_that_were_asked_for(
    context, with_spare, tmp_path
):
    given = context(images="real+synthetic", budget="exposure")
    verified = tmp_path / "verified"
    verified.mkdir()
    write_table(pa.table({"image_id": [0, 1, 4]}), verified / "provenance.parquet")
    given.inputs["verified"] = verified
    part = _parts(given, with_spare)[1]
    assert (part.what, part.count) == ("synthetic (hard, verified)", 3)
    assert part.folder.annotations == verified / "instances.json"
    assert part.folder.images == given.inputs["synthetic"] / "images"
    assert _iterations(given, with_spare) == round(90 * (1 + 3 / 12))


def test_few_real_images_are_among_more(context, with_spare):
    def trained_on(multiple):
        parts = _parts(context(real_multiple=multiple), with_spare)
        return {(p.what, item["file_name"]) for p in parts for item in document_of(p)["images"]}

    assert trained_on(0.25) < trained_on(0.5) < trained_on(1.0) < trained_on(1.25) < trained_on(1.5)


def test_pasted_objects_come_with_their_masks(context, with_spare):
    parts = _parts(context(augmentation="copy-paste", real_multiple=0.5), with_spare)
    assert parts[0].folder.has_masks
    assert '"counts"' in parts[0].folder.annotations.read_text()
    plain = _parts(context(), with_spare)
    assert not plain[0].folder.has_masks


@pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot
def test_one_thing_without_a_mask_is_pasted_as_its_box(context, with_spare, tmp_path):
    copy = Dataset(shutil.copytree(with_spare.folder, tmp_path / "copy"))
    rows = copy.objects.to_pylist()
    bare = next(row for row in rows if row["split"] == "train" and row["is_thing"])
    bare["mask"] = None
    write_table(pa.Table.from_pylist(rows, copy.objects.schema), copy.folder / "objects.parquet")
    tiny = PRESETS["demo"]["train_scorer"] | {"num_iterations": 1, "augmentation": "copy-paste"}
    given = context(**tiny)
    given.inputs["ingest"] = copy.folder
    run(given)
    file = json.loads((tmp_path / "objects_train.json").read_text())
    written = {item["id"]: item["segmentation"] for item in file["annotations"]}
    ((left, top, *_, bottom),) = written.pop(bare["object_id"])
    assert (left, top, bottom) == (bare["x_min"], bare["y_min"], bare["y_max"])
    assert all("counts" in mask for mask in written.values())
    things = f"1 of {len(written) + 1} things have none"
    assert f"real by masks ({things}: by boxes)" in (tmp_path / "card.md").read_text()


def test_a_part_says_how_its_things_are_pasted(context, with_spare, tmp_path):
    pasting = context(augmentation="copy-paste")
    assert _parts(pasting, with_spare)[0].pasting == "by masks"
    assert _parts(context(), with_spare)[0].pasting is None
    copy = Dataset(shutil.copytree(with_spare.folder, tmp_path / "copy"))
    bare = [{**row, "mask": None} for row in copy.objects.to_pylist()]
    write_table(pa.Table.from_pylist(bare, copy.objects.schema), copy.folder / "objects.parquet")
    part = _parts(pasting, copy)[0]
    assert part.pasting == "by boxes"
    assert not part.folder.has_masks


def test_nothing_is_pasted_into_images_without_real_labels(context, with_spare, tmp_path):
    real, synthetic = _parts(
        context(augmentation="copy-paste", images="real+synthetic"), with_spare
    )
    assert real.folder.is_pasted_into
    assert not synthetic.folder.is_pasted_into
    given = context(augmentation="copy-paste", images="real+pseudo")
    ingest_unlabelled(UnlabelledConfig(num_scenes=3), tmp_path / "unlabelled")
    given.inputs |= dict.fromkeys(["unlabelled", "pseudo-labels"], tmp_path / "unlabelled")
    real, pseudo = _parts(given, with_spare)
    assert (real.what, pseudo.what) == ("real", "pseudo-labelled")
    assert real.folder.is_pasted_into
    assert not pseudo.folder.is_pasted_into


def test_more_images_than_there_are_are_refused(with_spare, dataset):
    with pytest.raises(InvalidConfig, match="are 24, and there are 20 with the spare ones"):
        DetectorTraining(real_multiple=2).check(with_spare)
    with pytest.raises(
        InvalidConfig, match=r"more-real needs spare real images: give ingest\.spare"
    ):
        DetectorTraining(images="real+spare").check(dataset)
    DetectorTraining(real_multiple=0.5).check(dataset)


def test_boxes_of_real_images_alone_are_noisy(context, with_spare):
    given = context(images="real+synthetic", box_noise=0.05, real_multiple=0.5)
    real, synthetic = _parts(given, with_spare)
    plain, _ = _parts(context(images="real+synthetic", real_multiple=0.5), with_spare)
    assert synthetic.folder.annotations == SyntheticSet(given.inputs["synthetic"]).instances
    noisy, exact = (document_of(part)["annotations"] for part in (real, plain))
    assert [item["id"] for item in noisy] == [item["id"] for item in exact]
    assert all(a["bbox"] != b["bbox"] for a, b in zip(noisy, exact, strict=True))
