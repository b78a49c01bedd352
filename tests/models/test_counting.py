"""Counts of passes against numbers by hand, and those that are kept against a fresh count."""

import importlib
import json
import os

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from data.errors import InvalidModel
from flows.presets import PRESETS
from flows.run_config import build_run
from flows.run_graph import outline
from flows.studies import read_study
from flows.study_presets import STUDIES
from models.counting import counted_pass
from models.counts import (
    COUNTED_FILE,
    COUNTERS,
    CountedModel,
    detector_model,
    find_count,
    generator_model,
    known_counts,
)
from models.detector.options import DetectorConfig
from models.passes import Pass
from models.training.memory_errors import THRIFTY
from tasks.estimates.work import counted_models

MODULES = {kind: importlib.import_module(name) for kind, name in COUNTERS.items()}


def test_a_convolution_is_counted_as_by_hand():
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    with torch.no_grad():
        found = counted_pass(lambda count: layer(torch.empty(count, 3, 8, 8)))
    assert found.flops == 2 * (3 * 3 * 3) * 5 * (8 * 8)
    image, result, weight = 3 * 64 * 4, 5 * 64 * 4, 5 * 27 * 4
    # `empty` writes the image, the convolution reads it
    assert (found.bytes, found.fixed_bytes) == (2 * image + result, weight)
    assert (found.kernels, found.held) == (2, image + result)


def test_backwards_a_convolution_takes_as_much_for_each_of_its_gradients():
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False)

    def train(count):
        layer(torch.empty(count, 3, 8, 8, requires_grad=True)).sum().backward()

    assert counted_pass(train).flops == 3 * 2 * 27 * 5 * 64


def test_attention_is_counted_as_by_hand():
    heads, queries, keys, width = 2, 6, 7, 4

    def attend(count):
        shapes = (count, heads, queries, width), *[(count, heads, keys, width)] * 2
        return functional.scaled_dot_product_attention(*map(torch.empty, shapes))

    with FakeTensorMode():
        found = counted_pass(attend)
    assert found.flops == 2 * (2 * heads * queries * keys * width)


def models():
    """Of all presets and studies, and of Stable Diffusion with what takes less memory, by key."""
    runs = [build_run(preset, {}) for preset in PRESETS]
    runs += [run for name in STUDIES for run in read_study(name).runs.values()]
    found = [model for run in runs for model in counted_models(outline(run))]
    generators = (run.train_generator for run in runs)
    named = (item for item in generators if isinstance(item.base_model, str))
    found += [
        generator_model(item.model_copy(update=o)) for item in named for o in THRIFTY.values()
    ]
    return {model.key: model for model in found}


def count(model):
    return MODULES[model.kind].count_model(model.options)


def test_the_models_of_presets_and_studies_are_counted():
    """`GOLDEN=write pytest` counts those that are not there, some minutes each of Stable Diffusion."""
    if os.environ.get("GOLDEN") == "write":
        kept = json.loads(COUNTED_FILE.read_text())
        fresh = {key: kept.get(key) or count(model).model_dump() for key, model in models().items()}
        COUNTED_FILE.write_text(json.dumps(fresh, indent=1, sort_keys=True) + "\n")
        known_counts.cache_clear()
    assert known_counts().keys() == models().keys()


SMALL = next(key for key, item in models().items() if '"image_size": [64, 64]' in item.options)


@pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot
@pytest.mark.parametrize("key", [SMALL, *(pytest.param(k, marks=pytest.mark.slow)
                                          for k in models() if k != SMALL)])  # fmt: skip
def test_what_is_kept_is_what_is_counted(key):
    assert count(models()[key]) == known_counts()[key]


def count_detector(name):
    model = detector_model(DetectorConfig(config=f"mmdet::{name}", image_size=(64, 64)))
    return MODULES["detector"].count_model(model.options)


@pytest.mark.filterwarnings("ignore")  # MMDetection warns
def test_all_stages_of_a_cascade_are_counted():
    found, one = map(
        count_detector,
        (
            "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
            "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
        ),
    )
    layers, num_classes = 256 * 49 * 1024 + 1024 * 1024, 80
    of_boxes = (
        4 * 1024 * (3 - num_classes)
    )  # less of each class's own in the one, of all's in the three
    more = 2 * layers + 2 * 1024 * (num_classes + 1) + of_boxes
    assert found.passes["forward"].flops - one.passes["forward"].flops == 2 * 1000 * more


@pytest.mark.filterwarnings("ignore")  # likewise
@pytest.mark.parametrize("name", ["deformable-detr_r50_16xb2-50e", "no-such"])
def test_a_detector_of_other_parts_is_not_counted(name):
    with pytest.raises(InvalidModel, match=f"{name}_coco.py' is not counted: "):
        count_detector(f"deformable_detr/{name}_coco.py")


@pytest.mark.filterwarnings("ignore")
def test_a_detector_of_another_size_takes_in_proportion_to_pixels():
    model = CountedModel("detector", models()[SMALL].options.replace("[64, 64]", "[160, 96]"))
    found, counted = find_count(model, known_counts()), count(model)
    assert "[160, 96]" in model.options
    for name, of in counted.passes.items():
        for part in ("flops", "bytes", "held"):
            assert getattr(found.passes[name], part) == pytest.approx(getattr(of, part), rel=0.01)
        assert found.passes[name].kernels == of.kernels
        assert found.passes[name].fixed_bytes == of.fixed_bytes


def test_another_detector_is_not_taken_for_one_that_was_counted():
    options = json.loads(models()[SMALL].options)
    options["overrides"]["model.neck.out_channels"] = 96
    assert find_count(CountedModel("detector", json.dumps(options)), known_counts()) is None


def test_a_pass_is_of_whole_numbers():
    assert all(
        value > 0
        for item in known_counts().values()
        for found in item.passes.values()
        for value in Pass.model_validate(found).model_dump().values()
    )
