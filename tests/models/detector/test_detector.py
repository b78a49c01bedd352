import math
import multiprocessing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from safetensors.torch import load_file

from data.errors import InvalidConfig, InvalidModel, TrainingDiverged
from flows.presets import PRESETS
from models.detector.config_files import CocoFolder, Mixture, build_config, read_config
from models.detector.config_sources import config_path
from models.detector.detector import Detector, detections_table, write_detector
from models.detector.given_options import DETECTOR_FILES, CheckpointConfig
from models.detector.mmdetection import MODELS, register_all_modules
from models.detector.options import DetectorConfig
from models.detector.seeded_data import PlaceSampler, SeededConcatDataset
from models.detector.training import train_detector

RTMDET = PRESETS["demo"]["train_scorer"]["config"]

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot


def settings(name="train_detector", **changes):
    options = PRESETS["demo"][name] | {
        "num_epochs": 0,
        "num_iterations": 4,
        "checkpoint_interval": 2,
        "batch_size": 2,
    }
    overrides = (
        options["overrides"] | {"model.test_cfg.score_thr": 0.0} | changes.pop("overrides", {})
    )
    return DetectorConfig.model_validate(options | {"overrides": overrides} | changes)


def train(dataset, tmp_path, config, on_step=lambda step, losses: None, mixture=None):
    splits = ["train", "val"] if mixture else ["train"]
    train_sets = [CocoFolder(dataset.instances_file(k), dataset.image_folder(k)) for k in splits]
    train_detector(
        config, train_sets, dataset.things, tmp_path / "work", tmp_path / "out", on_step, mixture
    )
    return Detector.load(tmp_path / "out")


@pytest.mark.parametrize("name", ["train_detector", "train_scorer"])
def test_a_detector_trains_is_exported_and_detects(dataset, tmp_path, name):
    steps = []
    detector = train(dataset, tmp_path, settings(name), lambda step, losses: steps.append(step))
    assert steps == [1, 2, 3, 4]
    found = list(detector.detect(dataset.image_paths("val"), batch_size=4))
    assert [item.image_id for item in found] == [1, 2, 3, 4, 5, 6]
    table = detections_table("val", found, "tiny")
    assert table.num_rows == sum(len(item.scores) for item in found) > 0
    assert set(table["category_id"].to_pylist()) <= set(dataset.things)
    assert 0 <= min(table["score"].to_pylist()) <= max(table["score"].to_pylist()) <= 1


def test_a_loss_that_is_not_finite_ends_the_training(dataset, tmp_path):
    steps = []
    with pytest.raises(TrainingDiverged, match=r"the loss is nan\. Lower learning_rate \(1e\+30\)"):
        train(dataset, tmp_path, faster_rcnn(learning_rate=1e30), lambda n, _: steps.append(n))
    assert steps == [1]
    assert not (tmp_path / "out").exists()


class Killed(Exception):
    """Stands for the end of the process."""


def stop_at(last):
    def stop(step, losses):
        if step == last:
            raise Killed

    return stop


def faster_rcnn(**changes):
    """A small one; it draws the boxes to train on at random."""
    narrow = {
        "model.backbone.depth": 18,
        "model.backbone.base_channels": 8,
        "model.neck.in_channels": [8, 16, 32, 64],
        "model.neck.out_channels": 16,
        "model.rpn_head.in_channels": 16,
        "model.rpn_head.feat_channels": 16,
        "model.roi_head.bbox_roi_extractor.out_channels": 16,
        "model.roi_head.bbox_head.in_channels": 16,
        "model.roi_head.bbox_head.fc_out_channels": 32,
    }
    return DetectorConfig.model_validate(
        settings(pretrained=False, **changes).model_dump()
        | {"config": DetectorConfig().config, "overrides": narrow}
    )


@pytest.mark.parametrize(
    ("make", "changes", "mixture"),
    [
        (settings, {"num_workers": 2}, None),
        (settings, {"augmentation": "copy-paste"}, None),
        (settings, {}, Mixture(added_share=0.4, num_mixed=14)),
        (faster_rcnn, {}, None),
    ],
)
def test_a_killed_training_goes_on_as_one_that_was_not(
    dataset, tmp_path, monkeypatch, make, changes, mixture
):
    config, steps = make(num_iterations=8, **changes), []
    train(dataset, tmp_path / "whole", config, mixture=mixture)
    with pytest.raises(Killed):
        train(dataset, tmp_path / "killed", config, stop_at(7), mixture)
    read, places = SeededConcatDataset.__getitem__, tmp_path / "places.txt"

    def noted(images, code):
        with places.open("a") as file:  # loading processes are forked and write to it too
            file.write(f"{code // len(images)}\n")
        return read(images, code)

    monkeypatch.setattr(SeededConcatDataset, "__getitem__", noted)
    train(dataset, tmp_path / "killed", config, lambda step, losses: steps.append(step), mixture)
    assert steps == [7, 8]
    begun = sorted(map(int, places.read_text().split()))
    assert begun[:4] == [12, 13, 14, 15]  # of the second epoch: there are 12 images
    assert len(begun) == 4 or config.num_workers  # which read ahead
    whole, killed = (
        load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize(
    "changes",
    [{"config": "mmdet::no/such.py"}, {"overrides": {"model.backbone.type": "NoSuchNet"}}],
)
def test_a_config_that_does_not_exist_is_refused(dataset, tmp_path, changes):
    with pytest.raises(InvalidConfig, match="detector config"):
        train(dataset, tmp_path, settings(**changes))


def test_a_config_whose_detector_could_not_be_loaded_is_refused_before_it_trains(dataset, tmp_path):
    """The type of a suppression is looked up where a trained detector is used, and not before."""
    config = settings(overrides={"model.test_cfg.nms.type": "own.nms"})
    with pytest.raises(InvalidConfig, match=r"loaded again: .*\['own.nms'\]"):
        train(dataset, tmp_path, config, stop_at(1))


def test_a_checkpoint_whose_config_could_not_be_loaded_again_is_refused(dataset, tmp_path):
    file, base = tmp_path / "own.py", str(config_path(PRESETS["demo"]["train_detector"]["config"]))
    file.write_text(f"_base_ = {base!r}\nmodel = dict(test_cfg=dict(nms=dict(type='own.nms')))\n")
    register_all_modules(init_default_scope=True)
    weights = MODELS.build(read_config(str(file)).model).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "own.pth")
    source = CheckpointConfig(config=str(file), checkpoint=tmp_path / "own.pth")
    with pytest.raises(InvalidConfig, match=r"loaded again: .*\['own.nms'\]"):
        Detector.from_checkpoint(source, dataset.things)


def test_nested_overrides_do_not_undo_dotted_ones(dataset, tmp_path):
    overrides = {"model": {"test_cfg": {"max_per_img": 7}}}
    config = build_config(settings(overrides=overrides), [], dataset.things, tmp_path)
    assert config.model.test_cfg.max_per_img == 7
    assert config.model.backbone.widen_factor == 0.25


def test_the_learning_rate_reaches_an_optimizer_that_was_replaced(dataset, tmp_path):
    config = build_config(settings("train_scorer"), [], dataset.things, tmp_path)
    assert config.optim_wrapper.optimizer.type == "AdamW"
    assert config.optim_wrapper.optimizer.lr == PRESETS["demo"]["train_scorer"]["learning_rate"]


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ({}, 0.02 * 8 / 16),
        (PRESETS["coco-256"]["train_scorer"], 0.01 * 8 / 64),
        ({"config": RTMDET, "overrides": {"auto_scale_lr.base_batch_size": 256}}, 0.004 * 8 / 256),
        ({"config": RTMDET, "learning_rate": 0.003}, 0.003),
    ],
)
def test_the_learning_rate_is_the_configs_for_its_batch(dataset, tmp_path, options, rate):
    config = build_config(DetectorConfig.model_validate(options), [], dataset.things, tmp_path)
    assert config.optim_wrapper.optimizer.lr == rate
    assert not config.auto_scale_lr  # with which MMEngine would scale it itself


@pytest.mark.parametrize(
    "overrides", [{}, {"optim_wrapper.optimizer.lr": 0.1, "auto_scale_lr": None}]
)
def test_a_config_without_a_rule_needs_a_learning_rate(dataset, tmp_path, overrides):
    config = settings(learning_rate=None, overrides=overrides)
    with pytest.raises(InvalidConfig, match=r"learning_rate is null.*give learning_rate"):
        build_config(config, [], dataset.things, tmp_path)


def with_hooks(folder, hooks):
    """The tiny detector by a config of its own with other hooks, and its schedule's 300 epochs."""
    file = folder / "hooks.py"
    base = str(config_path(PRESETS["demo"]["train_detector"]["config"]))
    file.write_text(f"_base_ = {base!r}\ncustom_hooks = {hooks!r}\n")
    return settings(config=str(file), config_hooks=True)


def test_epochs_of_a_configs_hooks_are_the_same_share_of_the_training(dataset, tmp_path):
    def hooks(options):
        config = DetectorConfig.model_validate({**options, "num_epochs": 0, "num_iterations": 900})
        found = build_config(config, [], dataset.things, tmp_path).custom_hooks
        return {hook.pop("type"): hook for hook in found}

    yolox = PRESETS["coco-256"]["train_scorer"]
    assert hooks(yolox) == {
        "LateL1LossHook": {"begin": 900 - 900 * 15 // 300},
        "SyncNormHook": {"priority": 48},
        "EMAHook": {
            "ema_type": "ExpMomentumEMA", "momentum": 0.0001, "update_buffers": True, "priority": 49,
        },
    }  # fmt: skip
    assert hooks(yolox | {"config_hooks": False}) == {}
    assert hooks({"config": RTMDET, "config_hooks": True}).keys() == {"EMAHook"}
    late = with_hooks(tmp_path, [{"type": "EMAHook", "begin_epoch": 20}]).model_dump()
    assert hooks(late) == {"EMAHook": {"begin_epoch": 0, "begin_iter": 60}}


def test_what_is_exported_is_the_average_of_the_weights(dataset, tmp_path):
    averaged = with_hooks(
        tmp_path, [{"type": "EMAHook", "ema_type": "ExponentialMovingAverage", "momentum": 0.3}]
    )
    length = {"num_iterations": 2, "checkpoint_interval": 1}
    train(dataset, tmp_path / "averaged", averaged.model_copy(update=length))
    train(dataset, tmp_path / "plain", settings(**length))
    first, second = (
        torch.load(tmp_path / "plain" / "work" / f"iter_{step}.pth", weights_only=True)[
            "state_dict"
        ]
        for step in (1, 2)
    )
    found = load_file(tmp_path / "averaged" / "out" / "model.safetensors")
    name = "bbox_head.multi_level_conv_cls.0.weight"
    assert not torch.equal(first[name], second[name])
    assert torch.allclose(found[name], 0.7 * first[name] + 0.3 * second[name], atol=1e-7)


def test_a_killed_training_with_a_configs_hooks_ends_as_one_that_was_not(dataset, tmp_path):
    hooks = [{"type": "mmdet.YOLOXModeSwitchHook", "num_last_epochs": 150},
             {"type": "EMAHook", "momentum": 0.1, "update_buffers": True, "priority": 49}]  # fmt: skip
    config, late = with_hooks(tmp_path, hooks), []

    def note(step, losses):
        if "loss_l1" in losses:
            late.append(step)

    train(dataset, tmp_path / "whole", config, note)
    with pytest.raises(Killed):
        train(dataset, tmp_path / "killed", config, stop_at(3))
    train(dataset, tmp_path / "killed", config, note)
    assert late == [3, 4, 3, 4]
    whole, killed = (
        load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    dataset, tmp_path, caplog, damage
):
    config, steps = settings(num_iterations=6), []
    train(dataset, tmp_path / "whole", config)
    with pytest.raises(Killed):
        train(dataset, tmp_path / "killed", config, stop_at(5))
    path = tmp_path / "killed" / "work" / "iter_4.pth"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    train(dataset, tmp_path / "killed", config, lambda step, losses: steps.append(step))
    assert steps == [3, 4, 5, 6]
    assert "iter_4.pth is damaged" in caplog.text
    whole, killed = (
        load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_a_checkpoint_is_read_as_tensors_and_numbers(dataset, tmp_path):
    with pytest.raises(Killed):
        train(dataset, tmp_path, settings(num_iterations=6), stop_at(5))
    path = tmp_path / "work" / "iter_4.pth"
    torch.save(torch.load(path, weights_only=True) | {"of a hook": tmp_path}, path)
    with pytest.raises(InvalidConfig, match=r"iter_4.pth holds more than tensors and numbers"):
        train(dataset, tmp_path, settings(num_iterations=6))


@pytest.mark.parametrize(("iterations", "warmup"), [(1000, 50), (100, 10), (9, 0)])
def test_the_warm_up_is_at_most_a_tenth_of_the_schedule(dataset, tmp_path, iterations, warmup):
    config = build_config(settings(num_iterations=iterations), [], dataset.things, tmp_path)
    assert config.train_cfg.max_iters == iterations
    cosine = config.param_scheduler[-1]
    assert (cosine.begin, cosine.end, cosine.T_max) == (warmup, iterations, iterations - warmup)
    assert [item.end for item in config.param_scheduler[:-1]] == ([warmup] if warmup else [])


def test_mixed_precision_is_mmengines_and_needs_a_gpu(dataset, tmp_path, monkeypatch):
    mixed = settings(mixed_precision="bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidConfig, match="mixed_precision=bf16 needs a GPU"):
        build_config(mixed, [], dataset.things, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    wrapper = build_config(mixed, [], dataset.things, tmp_path).optim_wrapper
    assert (wrapper.type, wrapper.dtype) == ("AmpOptimWrapper", "bfloat16")


def test_a_training_starts_from_a_checkpoints_weights(dataset, tmp_path):
    torch.manual_seed(0)
    trained = train(dataset, tmp_path / "first", settings("train_scorer"))
    given = {f"{name}": torch.full_like(value, 0.01) if value.is_floating_point() else value
             for name, value in trained._model.state_dict().items()}  # fmt: skip
    given["bbox_head.rtm_cls.0.weight"] = torch.zeros(3, 2, 1, 1)  # of other classes
    torch.save({"state_dict": given}, tmp_path / "start.pth")
    config = settings(
        "train_scorer", load_from=tmp_path / "start.pth", num_iterations=1, learning_rate=1e-12
    )
    begun = train(dataset, tmp_path / "second", config)._model.state_dict()
    weight = begun["backbone.stem.0.conv.weight"]
    assert torch.allclose(weight, torch.full_like(weight, 0.01), atol=1e-6)
    assert begun["bbox_head.rtm_cls.0.weight"].std() > 1e-4
    torch.save({"state_dict": {"nothing": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InvalidModel, match=r"other\.pth: none of its 1 weights fits"):
        train(
            dataset, tmp_path / "third", settings("train_scorer", load_from=tmp_path / "other.pth")
        )


@pytest.mark.parametrize("masks", [True, False])
def test_objects_of_other_images_are_pasted(dataset, tmp_path, masks):
    from data.coco.export import export_objects
    from models.detector.mmdetection import DATASETS

    register_all_modules(init_default_scope=True)

    annotations = dataset.instances_file("train")
    if masks:
        annotations = tmp_path / "objects.json"
        export_objects(dataset.folder, "train", annotations)
    folder = CocoFolder(annotations, dataset.image_folder("train"), has_masks=masks)
    pasting = settings(augmentation="copy-paste")

    def samples(config):
        built = build_config(config, [folder], dataset.things, tmp_path)
        images = DATASETS.build(built.train_dataloader.dataset)
        return [images[len(images) * place + place] for place in range(len(images))]

    pasted, plain = samples(pasting), samples(settings())
    more = [len(a["data_samples"].gt_instances) - len(b["data_samples"].gt_instances)
            for a, b in zip(pasted, plain, strict=True)]  # fmt: skip
    assert sum(more) > 0
    assert all("masks" not in item["data_samples"].gt_instances for item in pasted)
    again = samples(pasting)
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(pasted, again, strict=True))
    folder = replace(folder, is_pasted_into=False)
    left = samples(pasting)
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(left, plain, strict=True))


def test_a_detector_is_the_same_bytes_whenever_it_is_written(dataset, tmp_path):
    register_all_modules(init_default_scope=True)
    config = build_config(settings("train_scorer"), [], dataset.things, tmp_path)
    model, categories = MODELS.build(config.model), list(dataset.things.items())
    for folder in ("first", "second"):
        write_detector(tmp_path / folder, model, config, categories)
    for name in DETECTOR_FILES:
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
    weights, stored = model.state_dict(), load_file(tmp_path / "first" / "model.safetensors")
    assert len(stored) < len(weights)  # RTMDet's levels share some
    again = Detector.load(tmp_path / "first")._model.state_dict()
    assert all(torch.equal(weights[name], again[name].cpu()) for name in weights)


def test_a_folder_that_is_no_detector_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match="detector folder"):
        Detector.load(tmp_path)


def test_the_number_of_loading_processes_changes_nothing(dataset, tmp_path):
    found = []
    for count in (0, 2):
        config = settings(num_workers=count, num_iterations=6)
        found.append(train(dataset, tmp_path / str(count), config))
        assert not multiprocessing.active_children()
    first, second = (load_file(tmp_path / n / "out" / "model.safetensors") for n in ("0", "2"))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Coins(BaseDataset):
    """A data set whose items are random numbers."""

    def __init__(self, count):
        self._count = count
        super().__init__(serialize_data=False)  # which collects all garbage there is

    def load_data_list(self):
        return [{} for _ in range(self._count)]

    def __getitem__(self, index):
        return index, np.random.randint(2**30)  # noqa: NPY002  # what transforms use


@pytest.mark.parametrize(("share", "batch_size"), [(1 / 3, 8), (0.25, 4), (0.9, 8), (0.07, 5)])
def test_every_batch_has_its_share_of_added_images(share, batch_size):
    num_real, num_added, num_batches, num_mixed = 7, 5, 300, 250 * batch_size
    images = SeededConcatDataset([Coins(num_real), Coins(2), Coins(num_added - 2)], 0)

    def read(start=0):
        sampler = PlaceSampler(images, start=start, added_share=share, num_mixed=num_mixed, seed=3)
        return list(islice(sampler, num_batches * batch_size - start))

    codes = read()
    places, indices = np.divmod(codes, len(images))
    assert places.tolist() == list(range(num_batches * batch_size))
    added = indices >= num_real
    by_batch = added.reshape(num_batches, batch_size).sum(1)
    assert set(by_batch[:250]) <= {math.floor(share * batch_size), math.ceil(share * batch_size)}
    assert by_batch[:250].sum() == round(share * num_mixed)
    assert not by_batch[250:].any()
    for own, size in ((indices[~added], num_real), (indices[added], num_added)):
        passes = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(passes) == np.unique(own)).all()
        assert len(np.unique(passes, axis=0)) > 2
    assert read(start=1001) == codes[1001:]


def test_images_are_flipped_by_seed_and_place():
    def draw(seed, place):
        return SeededConcatDataset([Coins(5)], seed)[5 * place + 3]

    before = np.random.get_state()[1].copy()  # noqa: NPY002  # what transforms use
    assert draw(0, 7) == draw(0, 7)
    assert draw(0, 7)[0] == 3
    assert len({draw(seed, place)[1] for seed in (0, 1) for place in (0, 1, 2)}) == 6
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002  # likewise
