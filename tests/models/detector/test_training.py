"""Detectors that several processes train; how one does it is in test_detector.py."""

import pytest
import torch
from safetensors.torch import load_file

from flows.presets import PRESETS
from models.detector.config_files import CocoFolder, Mixture
from models.detector.options import DetectorConfig
from models.detector.training import train_detector

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot

NARROW = {
    "model.backbone.depth": 18,
    "model.backbone.base_channels": 8,
    "model.backbone.norm_eval": True,
    "model.neck.in_channels": [8, 16, 32, 64],
    "model.neck.out_channels": 32,
}
FASTER_RCNN = NARROW | {
    "model.rpn_head.in_channels": 32,
    "model.rpn_head.feat_channels": 16,
    "model.roi_head.bbox_roi_extractor.out_channels": 32,
    "model.roi_head.bbox_head.in_channels": 32,
    "model.roi_head.bbox_head.fc_out_channels": 32,
}
FCOS = NARROW | {
    "model.bbox_head.in_channels": 32,
    "model.bbox_head.feat_channels": 32,
    "model.bbox_head.stacked_convs": 1,
}


def settings(config, overrides, **changes):
    """Four steps of four images."""
    options = PRESETS["demo"]["train_detector"] | {
        "config": config,
        "overrides": overrides,
        "pretrained": False,
        "num_epochs": 0,
        "num_iterations": 4,
        "checkpoint_interval": 2,
        "batch_size": 4,
        "num_workers": 0,
    }
    return DetectorConfig.model_validate(options | changes)


@pytest.fixture(scope="module")
def train_in_two(root, fork_server, scripts_of):
    """Trains in two processes; returns the folder."""
    scripts_of("detector")
    from detector_script import main

    def train(name, config, death=-1, mixture=None):
        options = config.model_copy(update={"num_processes": 2}).model_dump(mode="json")
        arguments = root / name, options, death, mixture
        process = fork_server.Process(target=main, args=arguments)
        process.start()
        process.join(240)
        status = process.exitcode
        process.kill()  # where it hangs
        assert status == 0
        return root / name

    return train


def weights(folder):
    return load_file(folder / "out" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "mixture"), [("real", None), ("mixed", Mixture(added_share=0.4, num_mixed=10))]
)
def test_two_processes_train_as_one_where_losses_are_averaged_over_both(
    train_in_two, dataset, tmp_path, name, mixture
):
    """FCOS draws nothing, and divides by what all processes have."""
    config = settings("mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", FCOS, num_workers=1)
    splits = ["train", "val"] if mixture else ["train"]
    folders = [CocoFolder(dataset.instances_file(k), dataset.image_folder(k)) for k in splits]

    def train(name, **changes):
        train_detector(
            config.model_copy(update=changes), folders, dataset.things,
            tmp_path / name / "work", tmp_path / name / "out", mixture=mixture,
        )  # fmt: skip
        return weights(tmp_path / name)

    alone, first = train("alone"), train("first", num_iterations=1)
    together = weights(train_in_two(name, config, mixture=mixture))
    for key, expected in alone.items():
        moved = float((expected - first[key]).abs().max())
        torch.testing.assert_close(together[key], expected, rtol=0, atol=0.02 * moved + 1e-7)


def test_a_process_that_dies_changes_nothing(train_in_two):
    config = settings(DetectorConfig().config, FASTER_RCNN)
    whole = train_in_two("whole", config)
    killed = train_in_two("killed", config, death=3)
    steps = (killed / "steps.txt").read_text().split()
    assert steps[:2] == ["1", "2"]
    assert steps[-2:] == ["3", "4"]
    assert steps.count("1") == 1
    assert (killed / "died").exists()
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(killed).items())
