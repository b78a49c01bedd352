"""What steps are said to take: finite, in proportion to images and steps; and what is too little."""

import json
import math
import shutil
from dataclasses import replace
from typing import get_args

import numpy as np
import psutil
import pytest
from PIL import Image

from data.artifacts.digests import DigestMemory
from flows.presets import PRESETS
from flows.retrain_config import Arm
from flows.run_config import build_run, has_data
from flows.run_graph import outline
from models.counts import known_counts
from models.generator.options import GeneratorConfig
from models.nvidia import Gpu
from tasks.catalogue import KINDS
from tasks.estimates.cost import ASSUMED_CORE, HALF_PEAKS, Cpu, Gpus, half_peak, schedule
from tasks.estimates.data_size import COCO, data_sizes
from tasks.estimates.forecast import forecast, gpus_here
from tasks.estimates.rates import START_SECONDS
from tasks.estimates.work import _FORMULAS, Facts, Work, work_of


def works(preset="demo", overrides=None):
    config = build_run(preset, overrides or {})
    graph = outline(config)
    data = data_sizes(graph, DigestMemory(), given=has_data(config))
    facts = Facts(data, known_counts())
    return graph, {step.identity.reference: work_of(step, facts) for step in graph}


def work(name, preset="demo", overrides=None):
    graph, found = works(preset, overrides)
    return found[graph.find(name).identity.reference]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_of_every_preset_takes_something_finite(preset):
    graph, found = works(preset)
    for device in (Gpus(1), Gpus(8), Cpu(2, ASSUMED_CORE)):
        seconds = [device.seconds(step, found[step.identity.reference]) for step in graph]
        assert all(math.isfinite(value) and value >= START_SECONDS for value in seconds)
        planned = schedule(graph, found, device)
        assert max(seconds) <= planned.seconds <= sum(seconds) * (1 + 1e-9)
    assert all(item.stored > 0 and item.memory > 0 for item in found.values())


EVERYTHING = {
    "ingest": {"scenes": {"num_spare": 16, "num_unlabelled": 16}},
    "extract_attributes": {"scoring": {"num_folds": 2}},
    "pretrain_generator": {"num_steps": 4},
    "retrain": {
        "arms": [*get_args(Arm)],
        "budgets": ["iterations", "exposure"],
        "ruler": [0.5],
        "verification": {},
    },
}


def test_every_kind_of_step_takes_something():
    graph, found = works("smoke", EVERYTHING)
    kinds = {step.kind.name for step in graph}
    assert {"ingest-unlabelled", "pseudo-label", "verify-set"} <= kinds
    assert all(item and item.stored > 0 for item in found.values())
    twice = [found[graph.find(f"retrain {name} seed 0").identity.reference].flops
             for name in ("real+hard", "real+hard, equal exposure")]  # fmt: skip
    assert twice[1] == pytest.approx(twice[0] * (48 + 8) / 48)


def test_a_training_is_linear_in_steps_and_a_set_in_images():
    base, twice = (
        work("train generator", overrides={"train_generator": {"num_steps": steps,
                                                               "probe": {"interval": 0}}})
        for steps in (1000, 2000)
    )  # fmt: skip
    more = work("train generator", overrides={"train_generator": {"num_steps": 3000,
                                                                  "probe": {"interval": 0}}})  # fmt: skip
    assert more.flops - twice.flops == pytest.approx(twice.flops - base.flops)
    assert more.core_seconds - twice.core_seconds == pytest.approx(8 * 1000 * 0.001)
    few, many = (
        work("synthesize train hard", overrides={"synthesize": {"num_train_layouts": count}})
        for count in (64, 640)
    )
    for name in ("flops", "memory_traffic", "kernels", "stored"):
        assert getattr(many, name) == pytest.approx(10 * getattr(few, name))


def test_a_step_of_the_demo_takes_its_passes():
    count = next(c for k, c in known_counts().items() if "patch_size" in k)
    found = work("synthesize val hard")
    forward, text, decode = (count.passes[name].flops for name in ("forward", "text", "decode"))
    assert found.flops == 224 * (2 * 12 * forward + 2 * text + decode)


def test_a_new_model_s_decoder_is_trained_where_the_model_is_made():
    def flops(decoder_steps, **more):
        options = {"base_model": {"decoder_steps": decoder_steps}}
        return work("train generator", overrides={"train_generator": options, **more}).flops

    pretrained = {
        "ingest": {"scenes": {"num_unlabelled": 16}},
        "pretrain_generator": {"num_steps": 4},
    }
    decode = next(c for k, c in known_counts().items() if "patch_size" in k).passes["decode"].flops
    assert flops(500) - flops(0) == pytest.approx(3 * 500 * 32 * decode)
    assert flops(500, **pretrained) == flops(0, **pretrained)


def test_a_protocol_of_few_objects_leaves_the_published_share_of_coco():
    found = work("synthesize train hard", "coco-256")
    whole = '"lora_rank": null, "perception_weight": 1.0, "resolution": 256'
    count = next(c for k, c in known_counts().items() if whole in k)
    forward, text, decode = (count.passes[name].flops for name in ("forward", "text", "decode"))
    assert found.flops / (2 * 50 * forward + 2 * text + decode) == pytest.approx(47_429)
    assert COCO.images["train"] == 118_287


def test_latents_of_coco_at_512_take_31_gb():
    cached = work("train generator", "coco-512")
    online = work("train generator", "coco-512", {"train_generator": {"latents": "online"}})
    assert (cached.scratch - online.scratch) / 1e9 == pytest.approx(31, abs=0.05)
    assert online.scratch / 3e9 == pytest.approx(12, abs=0.5)  # of a checkpoint, docs/gpu.md
    assert GeneratorConfig().latents == "cached"


def test_adapters_take_less_beside_weights_that_are_held_and_kept_all_the_same():
    options = {"train_generator": {"latents": "online"}}
    full = work("train generator", "fine-tune", options)
    options["train_generator"]["lora_rank"] = 16
    adapters = work("train generator", "fine-tune", options)
    unet = 859_520_964 * 4  # of Stable Diffusion v1.5, bytes
    assert adapters.stored == pytest.approx(full.stored, rel=0.01)
    assert full.memory - adapters.memory == pytest.approx(unet / 4 * (20 - 4), rel=0.15)
    assert full.scratch - adapters.scratch == pytest.approx(3 * unet / 4 * (12 - 4), rel=0.02)
    assert adapters.least_gpu_memory < 13e9 < full.least_gpu_memory


def test_eight_gpus_share_the_training_and_the_other_steps():
    graph, found = works("coco-512", {"train_generator": {"num_processes": 8}})
    step = graph.find("train generator")
    alone, shared = (Gpus(n).seconds(step, found[step.identity.reference]) for n in (1, 8))
    assert 1.5 < alone / shared < 8  # of 8 images each the operators take as long to launch
    hours = [schedule(graph, found, Gpus(count)).seconds for count in (1, 8)]
    assert 1.5 < hours[0] / hours[1] < 8


@pytest.mark.parametrize("stage", ["train_detector", "train_generator"])
def test_processes_that_share_a_training_hold_the_model_each(stage):
    name = stage.replace("_", " ")
    alone, shared = (work(name, "demo", {stage: {"num_processes": n}}) for n in (1, 2))
    assert alone.memory < shared.memory < 2 * alone.memory
    assert (alone.flops, alone.stored) == (shared.flops, shared.stored)


def test_a_training_that_is_asked_for_one_gpu_has_one():
    graph, found = works("coco-512")
    step = graph.find("train generator")
    alone, beside = (Gpus(n).seconds(step, found[step.identity.reference]) for n in (1, 8))
    assert alone == beside


@pytest.fixture
def photographs(tmp_path):
    """A COCO file with four images of 300 × 200, and one that is not there."""
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (300, 200)).save(tmp_path / f"images/{number}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 300, "height": 200} for i in range(5)]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "instances.json").write_text(json.dumps(document))
    return {"instances": tmp_path / "instances.json", "images": tmp_path / "images"}


def size(ingest):
    graph = outline(build_run("smoke", {"ingest": ingest}))
    sizes = data_sizes(graph, DigestMemory(), given=True)
    return sizes[graph.find("ingest").identity.reference]


def test_a_data_set_in_tiles_is_as_large_as_they_are(photographs):
    train = labelled(photographs, (1, 2, 3, 0, 0))
    given = {"train": train, "val": train}
    whole, tiled = size(given), size({**given, "tile": {"size": 100, "overlap": 0}})
    assert (whole.images["train"], whole.pixels, whole.whole) == (5, 60_000, None)
    assert (tiled.images["train"], tiled.pixels, tiled.whole) == (
        5 * 6, 10_000, replace(whole, layouts=None)
    )  # fmt: skip
    assert tiled.objects == pytest.approx(whole.objects / 6) == pytest.approx(0.2)


def labelled(photographs, objects_per_image, name="labelled.json"):
    """The photographs with so many things each."""
    document = json.loads(photographs["instances"].read_text())
    numbers = [i for i, count in enumerate(objects_per_image) for _ in range(count)]
    document["annotations"] = [
        {"id": key, "image_id": number, "category_id": 1, "bbox": [0, 0, 9, 9]}
        for key, number in enumerate(numbers)
    ]
    path = photographs["instances"].with_name(name)
    path.write_text(json.dumps(document))
    return {**photographs, "instances": path}


def test_images_without_a_thing_are_no_layouts(photographs):
    train, val = labelled(photographs, (7, 0, 0, 2, 0)), labelled(photographs, (0, 1), "val.json")
    found = size({"train": train, "val": val})
    assert (found.layouts, found.objects) == ({"train": 2, "val": 1}, 1.0)
    document = json.loads(train["instances"].read_text())
    for item in document["annotations"][:7]:
        item["iscrowd"] = 1
    train["instances"].write_text(json.dumps(document))
    found = size({"train": train, "val": val})
    assert (found.layouts, found.objects) == ({"train": 1, "val": 1}, 1.0)


def test_things_that_lie_anywhere_are_in_so_many_tiles(photographs):
    """A simulation: points in tiles of a hundredth of the image."""
    train = labelled(photographs, (20, 60, 20, 0, 100))
    found = size({"train": train, "val": train, "tile": {"size": 20, "overlap": 0}})
    num_tiles = 5 * 15 * 10
    assert found.images["train"] == num_tiles
    rng = np.random.default_rng(0)
    hit = [len(set(rng.integers(0, num_tiles, 200).tolist())) for _ in range(500)]
    assert found.layouts["train"] == pytest.approx(np.mean(hit), rel=0.01)


def test_a_set_is_of_images_with_a_thing(photographs):
    train = labelled(photographs, (3, 0, 0, 0, 0))
    given = {"ingest": {"train": train, "val": train}}
    one = work("synthesize val easy", "fine-tune", given)
    given = {"ingest": {"train": train, "val": labelled(photographs, (1, 1, 1, 1, 0), "val.json")}}
    four = work("synthesize val easy", "fine-tune", given)
    assert four.flops == pytest.approx(4 * one.flops)


def test_cutting_tiles_takes_time_in_proportion_to_their_pixels(photographs):
    train = labelled(photographs, (3, 0, 0, 0, 0))

    def seconds(**tile):
        given = {"train": train, "val": train, **({"tile": tile} if tile else {})}
        return work("ingest", "smoke", {"ingest": given}).core_seconds

    whole, apart, overlapping = seconds(), seconds(size=100), seconds(size=100, overlap=0.5)
    num_pixels = [2 * 5 * number * 100**2 for number in (4 * 3, 5 * 3)]
    assert overlapping - apart == pytest.approx((num_pixels[1] - num_pixels[0]) * 7e-8)
    assert apart - whole == pytest.approx(num_pixels[0] * 7e-8 + 10 * (0.0012 + 60_000 * 2e-8))


def test_the_size_of_images_is_that_of_image_files_alone(photographs, tmp_path):
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    Image.new("RGB", (20, 10)).save(unlabelled / "a.png")
    (unlabelled / "archive.zip").write_bytes(bytes(1_000_000))
    ingest = {"train": photographs, "val": photographs, "unlabelled": [unlabelled]}
    overrides = {"ingest": ingest, "pretrain_generator": {"num_steps": 1}}
    graph = outline(build_run("smoke", overrides))
    sizes = data_sizes(graph, DigestMemory(), given=True)
    (found,) = (item for item in sizes.values() if "unlabelled" in item.images)
    assert (found.images, found.pixels) == ({"unlabelled": 1}, 200)
    assert found.file_bytes == (unlabelled / "a.png").stat().st_size


def test_steps_that_need_nothing_of_each_other_run_side_by_side():
    graph, _ = works("smoke")
    names = ("ingest", "train detector", "train scorer")
    steps = [graph.find(name) for name in names]
    second = {step.identity.reference: Work(core_seconds=10, memory=5.0) for step in steps}
    found = schedule(steps, second, Cpu(2, ASSUMED_CORE))
    assert found.seconds == pytest.approx((5 + START_SECONDS) + (10 + START_SECONDS))
    assert found.memory == 10


def test_a_model_that_was_not_counted_is_named():
    graph = outline(build_run("smoke", {"train_generator": {"resolution": 32}}))
    found = forecast(graph, list(graph), DigestMemory())
    assert "train generator" in found.unknown
    assert "roughly: at least " in str(found)
    assert str(found).endswith(
        ", without 5 of these steps, among them train generator, synthesize train hard, synthesize val "
        "origin, synthesize val easy: `detdiffusion cost PRESET …` counts them"
    )
    one = str(replace(found, unknown=("train generator",)))
    assert ", without 1 of these steps, train generator: " in one
    assert "at least" not in str(replace(found, unknown=()))


def test_a_kind_without_a_formula_is_left_out_and_ours_have_one():
    step = outline(build_run("smoke", {})).find("train detector")
    new = replace(step, kind=replace(step.kind, name="new"))
    assert work_of(new, Facts({}, known_counts())) is None
    assert KINDS.keys() == _FORMULAS.keys()


@pytest.mark.parametrize("preset", ["demo", "fine-tune"])
def test_a_plan_knows_a_preset_s_detectors_at_the_sizes_that_new_proposes(preset):
    size = {"image_size": [1280, 800]}
    overrides = {"train_detector": size, "retrain": {"detector": size}}
    graph, found = works(preset, overrides)
    assert [step.name for step in graph if found[step.identity.reference] is None] == []
    usual = work("detect val", preset).flops
    ratio = {"demo": 800 * 1280 / (64 * 64) * 800 * 4 / 3 / 1280, "fine-tune": 1}[preset]
    assert work("detect val", preset, overrides).flops == pytest.approx(ratio * usual)


def test_too_little_disk_or_memory_is_named(monkeypatch, tmp_path):
    graph = outline(build_run("smoke", {}))
    found = forecast(graph, list(graph), DigestMemory())
    assert list(found.shortages(tmp_path / "not" / "there")) == []
    more = replace(found, disk=shutil.disk_usage(tmp_path).total + 1e15)
    (line,) = more.shortages(tmp_path)
    assert "set DETDIFFUSION_HOME to a folder of a larger one" in line
    memory = psutil.virtual_memory().total + 1e15
    (line,) = replace(found, memory=memory).shortages(tmp_path)
    assert "too few: end other programs" in line
    (line,) = replace(found, gpu_memory=24e9, gpu_there=16e9).shortages(tmp_path)
    assert "needs 24.0 GB of a GPU's memory at least, and there are 16.0 GB" in line


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L40", 181),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88),
        ("NVIDIA GeForce RTX 4070", 58),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", None),
        ("Quadro RTX 6000", None),
    ],
)
def test_a_peak_is_that_of_the_whole_name(name, peak):
    assert half_peak(name) == (peak and peak * 1e12)


@pytest.mark.parametrize("shorter", HALF_PEAKS)
def test_a_name_stands_behind_those_that_it_is_a_part_of(shorter):
    assert half_peak(shorter) == HALF_PEAKS[shorter]


def test_one_gpu_is_one(monkeypatch):
    monkeypatch.setattr("tasks.estimates.forecast.visible_gpus", lambda: ("0",))
    monkeypatch.setattr("tasks.estimates.forecast.known_gpus", lambda names: {"0": T4})
    graph = outline(build_run("coco-512", {}))
    assert forecast(graph, list(graph), DigestMemory()).machine == "1 GPU (Tesla T4)"


H100, T4 = Gpu("GPU-a", "NVIDIA H100 80GB HBM3", 80e9), Gpu("GPU-b", "Tesla T4", 16e9)
ODD = Gpu("GPU-c", "Odd 7", math.inf)


@pytest.mark.parametrize(
    ("known", "speed", "memory", "said"),
    [
        ({"0": H100, "1": H100}, 1.0, 80e9, "2 GPUs (NVIDIA H100 80GB HBM3)"),
        ({"0": H100, "1": T4}, 65 / 989, 16e9, "2 GPUs (NVIDIA H100 80GB HBM3, Tesla T4)"),
        ({"0": T4, "1": ODD}, 1.0, 16e9, "2 GPUs (Odd 7, Tesla T4; not known: as if an H100)"),
        ({"0": T4}, 1.0, 16e9, "2 GPUs (Tesla T4; not known: as if an H100)"),
        ({}, 1.0, math.inf, "2 GPUs (unknown; not known: as if an H100)"),
    ],
)
def test_a_gpu_is_as_fast_as_its_data_sheet_says(monkeypatch, known, speed, memory, said):
    monkeypatch.setattr("tasks.estimates.forecast.visible_gpus", lambda: ("0", "1"))
    monkeypatch.setattr("tasks.estimates.forecast.known_gpus", lambda names: known)
    assert gpus_here() == Gpus(2, pytest.approx(speed))
    graph, found = works("coco-512")
    expected = forecast(graph, list(graph), DigestMemory())
    assert (expected.machine, expected.gpu_there) == (said, memory)
    assert ("roughly: at least " in str(expected)) == ("not known" in said)
    step = graph.find("train generator")
    work = found[step.identity.reference]
    fast, slow = Gpus(1).seconds(step, work), Gpus(1, 0.1).seconds(step, work)
    assert slow == pytest.approx(10 * fast, rel=0.01)
