"""What configs of users ask for that is done otherwise here, or refused."""

import pytest
import torch

from data.errors import InvalidConfig
from models.detector.config_files import build_config
from models.detector.mmdetection import MODELS, register_all_modules
from models.detector.options import DetectorConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # MMDetection and MMEngine warn a lot

FASTER = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"


def built(path, **options):
    """A config completed for one class."""
    settings = DetectorConfig(num_epochs=0, num_iterations=10, **{"config": FASTER, **options})
    return build_config(settings, [], {1: "cat"}, path)


def of_a_user(path, text):
    """A config that inherits from Faster R-CNN's."""
    (path / "mine.py").write_text(f"_base_ = {FASTER!r}\n{text}\n")
    return str(path / "mine.py")


def test_a_backbone_from_scratch_learns_all_of_its_weights(tmp_path):
    register_all_modules(init_default_scope=True)
    options = {"model.backbone.depth": 18, "model.neck.in_channels": [64, 128, 256, 512]}
    frozen = {"model.backbone.norm_cfg": {"type": "BN", "requires_grad": False}}
    for overrides in ({}, frozen | {"model.backbone.norm_cfg.requires_grad": True}):
        config = built(tmp_path, pretrained=False, overrides=options | overrides)
        backbone = MODELS.build(config.model).train().backbone
        assert all(item.requires_grad for item in backbone.parameters())
        assert backbone.bn1.training
    pretrained = MODELS.build(built(tmp_path, overrides=options).model).train().backbone
    assert not pretrained.conv1.weight.requires_grad
    assert not pretrained.bn1.training


def test_norm_layers_that_a_config_freezes_learn_from_scratch(tmp_path):
    detr = "mmdet::detr/detr_r50_8xb2-150e_coco.py"
    found = built(tmp_path, config=detr, learning_rate=1e-4, pretrained=False).model.backbone
    assert (found.frozen_stages, found.norm_eval, found.norm_cfg.requires_grad) == (-1, False, True)
    found = built(tmp_path, config=detr, learning_rate=1e-4).model.backbone
    assert (found.frozen_stages, found.norm_eval, found.norm_cfg.requires_grad) == (1, True, False)


def test_a_backbone_freezes_nothing_of_its_own_accord_from_scratch(tmp_path):
    yolo = "mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py"
    assert "norm_eval" not in built(tmp_path, config=yolo).model.backbone  # which is on then
    assert built(tmp_path, config=yolo, pretrained=False).model.backbone.norm_eval is False


def test_what_overrides_freeze_stays_frozen_from_scratch(tmp_path):
    overrides = {"model.backbone.frozen_stages": 2, "model": {"backbone": {"norm_eval": True}}}
    found = built(tmp_path, pretrained=False, overrides=overrides).model.backbone
    assert (found.frozen_stages, found.norm_eval) == (2, True)


def test_what_starts_from_a_checkpoint_is_frozen_as_the_config_says(tmp_path):
    found = built(tmp_path, pretrained=False, load_from=tmp_path / "start.pth").model.backbone
    assert (found.frozen_stages, found.norm_eval) == (1, True)


def test_a_checkpoint_that_a_config_starts_from_is_not_left_out_in_silence(tmp_path):
    mine = of_a_user(tmp_path, "load_from = 'whole.pth'")
    with pytest.raises(InvalidConfig, match=r"load_from 'whole.pth' is not .*the option load_from"):
        built(tmp_path, config=mine)
    with pytest.raises(InvalidConfig, match="give the option load_from"):
        built(tmp_path, overrides={"load_from": "whole.pth"})
    assert built(tmp_path, config=mine, overrides={"load_from": ""}).load_from is None
    assert built(tmp_path, config=mine, load_from=tmp_path / "other.pth").load_from is None


def test_without_mixed_precision_there_is_none_of_the_configs(tmp_path, monkeypatch):
    wrapper = "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')"
    mine = of_a_user(tmp_path, wrapper)
    found = built(tmp_path, config=mine).optim_wrapper
    assert found.type == "OptimWrapper"
    assert not {"loss_scale", "dtype"} & found.keys()
    assert found.optimizer == built(tmp_path).optim_wrapper.optimizer
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = built(tmp_path, config=mine, mixed_precision="fp16").optim_wrapper
    assert (found.type, found.loss_scale) == ("AmpOptimWrapper", "dynamic")


def test_a_step_of_more_than_its_batch_is_refused(tmp_path):
    mine = of_a_user(tmp_path, "optim_wrapper = dict(accumulative_counts=4)")
    with pytest.raises(InvalidConfig, match=r"accumulative_counts is 4.*batch_size = 32"):
        built(tmp_path, config=mine)
    assert built(tmp_path, config=mine, overrides={"optim_wrapper.accumulative_counts": 1})


@pytest.mark.parametrize(
    "name",
    [
        "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
        "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
        "queryinst/queryinst_r50_fpn_1x_coco.py",
    ],
)
def test_a_detector_of_boxes_and_masks_goes_without_its_mask_head(tmp_path, name):
    register_all_modules(init_default_scope=True)
    found = built(tmp_path, config=f"mmdet::{name}")
    assert not MODELS.build(found.model).roi_head.with_mask


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("solo/solo_r50_fpn_1x_coco.py", "loss_mask, mask_head"),
        ("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", "loss_mask, mask_head"),
        ("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", "loss_mask, panoptic_head"),
        ("htc/htc_r50_fpn_1x_coco.py", "loss_mask, mask_head, semantic_head"),
        ("rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", "loss_mask"),
    ],
)
def test_a_detector_that_needs_masks_is_refused(tmp_path, name, parts):
    with pytest.raises(InvalidConfig, match=f": {parts} would be trained on masks"):
        built(tmp_path, config=f"mmdet::{name}", learning_rate=1e-4)
