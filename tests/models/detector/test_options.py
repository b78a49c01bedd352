"""What is known of a detector before anything is run: the files behind it."""

import ast

import pytest
from pydantic import ValidationError

from data.artifacts.digests import DigestMemory
from data.errors import InvalidConfig, InvalidDataset, InvalidModel
from models.detector.config_sources import config_files, config_path, named_weights
from models.detector.given_options import (
    CheckpointConfig,
    DarknetConfig,
    DetectionsFile,
    DetectorFolder,
    DetectorSource,
)
from models.detector.options import DetectorConfig, DetectorTraining, Fold


def foreign(options):
    return options.foreign(DigestMemory())


@pytest.fixture
def configs(tmp_path):
    """A config that inherits in both of MMEngine's ways."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "schedule.py").write_text("lr = 1")
    (tmp_path / "middle.py").write_text("_base_ = ['base/schedule.py', 'detector.py']")
    (tmp_path / "detector.py").write_text("_base_ = 'middle.py'")
    (tmp_path / "new.py").write_text(
        "from mmengine.config import read_base\n\nwith read_base():\n"
        "    from .base.schedule import *\n    from .base import schedule\n    from . import middle\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["detector.py", "new.py"])
def test_a_config_that_a_detectors_config_inherits_from_is_part_of_it(configs, name):
    config = DetectorConfig(config=str(configs / name), learning_rate=0.1)
    before = foreign(config)
    (configs / "base" / "schedule.py").write_text("lr = 2")
    assert foreign(config) != before
    (configs / "base" / "schedule.py").write_text("lr = 1")
    assert foreign(config) == before


def test_a_config_without_a_rule_for_its_rate_is_refused_where_none_is_given(configs):
    config = DetectorConfig(config=str(configs / "detector.py"))
    with pytest.raises(
        InvalidConfig, match=r"no auto_scale_lr\.base_batch_size .* give learning_rate"
    ):
        foreign(config)
    assert foreign(config.model_copy(update={"learning_rate": 0.1}))
    assert foreign(config.model_copy(update={"overrides": {"auto_scale_lr.base_batch_size": 16}}))
    (configs / "base" / "schedule.py").write_text("auto_scale_lr = dict(base_batch_size=16)")
    assert foreign(config)


def test_packaged_configs_are_found_with_all_they_inherit_from():
    files = config_files("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")
    assert {path.name for path in files} == {
        "faster-rcnn_r50_fpn_1x_coco.py", "faster-rcnn_r50_fpn.py", "coco_detection.py",
        "schedule_1x.py", "default_runtime.py",
    }  # fmt: skip


def test_the_same_files_as_mmengine_reads(configs):
    """MMEngine writes into the text of a config which files it was put together from."""
    from mmengine.config import Config

    path = config_path("mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py")
    text = Config.fromfile(path).text
    assert {file.name for file in config_files(str(path))} == {
        line.rpartition("/")[2] for line in text.splitlines() if line.startswith("/")
    }


FASTER = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"


def test_weights_of_a_backbone_are_downloads_or_files(tmp_path):
    assert named_weights(FASTER) == {"torchvision://resnet50"}
    assert DetectorConfig(config=FASTER).downloads() == ("torchvision://resnet50",)
    assert DetectorConfig(config=FASTER, pretrained=False).downloads() == ()
    mine = tmp_path / "mine.pth"
    overrides = {"model": {"backbone": {"init_cfg": {"checkpoint": str(mine)}}}}
    config = DetectorConfig(config=FASTER, overrides=overrides)
    with pytest.raises(InvalidConfig, match=r"no such file\. Correct the path"):
        foreign(config)
    mine.write_bytes(b"0")
    before = foreign(config)
    mine.write_bytes(b"1")
    assert foreign(config) != before
    dotted = {"model.backbone.init_cfg.checkpoint": str(mine)}
    other = DetectorConfig(config=FASTER, overrides=dotted)
    assert foreign(other) == foreign(config)
    assert other.keyed(foreign(other)) == config.keyed(foreign(config))


def test_moved_weights_are_the_same_and_those_of_two_folders_two(tmp_path):
    def config(backbone, neck):
        given = {
            "model.backbone.init_cfg.checkpoint": str(backbone),
            "model.neck": {"_delete_": True, "init_cfg": {"checkpoint": str(neck)}},
        }
        return DetectorConfig(config=FASTER, overrides=given)

    paths = [tmp_path / name / "w.pth" for name in "abc"]
    for path in paths:
        path.parent.mkdir()
        path.write_text(path.parent.name)
    first, second = config(paths[0], paths[1]), config(paths[2], paths[1])
    assert foreign(first) != foreign(second)
    paths[2].write_text("a")
    assert foreign(first) == foreign(second)
    assert first.keyed(foreign(first)) == second.keyed(foreign(second))
    paths[1].write_text("c")
    assert foreign(first)["overrides.model.neck.init_cfg.checkpoint"]


def test_weights_that_a_variable_of_a_config_names_are_found(tmp_path):
    rtmdet = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"
    assert any("cspnext-tiny" in name for name in DetectorConfig(config=rtmdet).downloads())
    (tmp_path / "w.pth").write_text("0")
    path = tmp_path / "mine.py"
    path.write_text(
        f"checkpoint = {str(tmp_path / 'w.pth')!r}\n"
        "model = dict(init_cfg=dict(type='Pretrained', checkpoint=checkpoint))\n"
    )
    neck = {"model.neck.init_cfg.type": "Xavier"}
    for overrides in ({}, neck):
        config = DetectorConfig(config=str(path), learning_rate=0.1, overrides=overrides)
        (tmp_path / "w.pth").write_text("0")
        before = foreign(config)
        (tmp_path / "w.pth").write_text("1")
        assert foreign(config) != before
    (tmp_path / "w.pth").unlink()
    with pytest.raises(InvalidConfig, match=r"w\.pth.*no such file"):
        foreign(config)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (DetectorConfig(config="mmdet::no/such.py"), InvalidConfig, "packaged with MMDetection"),
        (DetectorConfig(config="no/such.py"), InvalidConfig, "no/such.py"),
        (
            CheckpointConfig(config="mmdet::yolox/yolox_s_8xb8-300e_coco.py", checkpoint="no.pth"),
            InvalidModel,
            "detector checkpoint no.pth: no such file",
        ),
        (
            DarknetConfig(cfg=__file__, weights="no.weights", names=__file__),
            InvalidModel,
            "detector weights no.weights: no such file",
        ),
        (
            DetectorFolder(folder="nowhere"),
            InvalidModel,
            "detector folder nowhere: no such folder",
        ),
        (
            DetectionsFile(path="no.json", split="val"),
            InvalidDataset,
            "detections no.json",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_anything_runs(options, error, message):
    with pytest.raises(error, match=message):
        foreign(options)


def test_a_users_detector_is_known_by_content(tmp_path):
    for name in ("config.py", "detector.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    source = DetectorSource(source=DetectorFolder(folder=tmp_path))
    before = foreign(source)
    (tmp_path / "model.safetensors").write_text("MODEL.safetensors")
    assert foreign(source).keys() == before.keys() == {"source.folder"}
    assert foreign(source) != before


def test_a_detector_of_darknet_is_known_by_its_files_and_so_is_its_folder(tmp_path):
    paths = {name: tmp_path / f"model.{name}" for name in ("cfg", "weights", "names")}
    for name, path in paths.items():
        path.write_text(name)
    files = DetectorSource(source=DarknetConfig(**paths))
    assert foreign(files).keys() == {"source.cfg", "source.weights", "source.names"}
    folder = DetectorSource(source=DetectorFolder(folder=tmp_path))
    with pytest.raises(InvalidModel, match=r"it has no detector\.json"):
        foreign(folder)
    (tmp_path / "detector.json").write_text("{}")
    before = foreign(files), foreign(folder)
    paths["weights"].write_text("WEIGHTS")
    assert foreign(files)["source.weights"] != before[0]["source.weights"]
    assert foreign(folder) != before[1]
    assert files.keyed(foreign(files)) == {"source": {"nms_iou_threshold": 0.45, "class_names": {}}}


def test_a_training_without_its_configs_hooks_keeps_its_key():
    plain, own = DetectorConfig(config=FASTER), DetectorConfig(config=FASTER, config_hooks=True)
    assert "config_hooks" not in plain.keyed()
    assert own.keyed() == plain.keyed() | {"config_hooks": True}


def test_a_checkpoint_without_a_mapping_of_classes_keeps_its_key():
    plain = CheckpointConfig(config=FASTER, checkpoint="a.pth")
    mapped = plain.model_copy(update={"class_names": {"aeroplane": "airplane"}})
    assert "class_names" not in plain.keyed()
    assert mapped.keyed() == plain.keyed() | {"class_names": {"aeroplane": "airplane"}}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"config": FASTER, "checkpoint": "a.pth"}, CheckpointConfig),
        ({"cfg": "a.cfg", "weights": "a.weights", "names": "a.names"}, DarknetConfig),
        ({"folder": "a"}, DetectorFolder),
    ],
)
def test_a_source_is_told_by_its_options(given, kind):
    assert isinstance(DetectorSource.model_validate({"source": given}).source, kind)


def test_more_folds_than_images_are_refused(dataset):
    options = {"config": "mmdet::yolox/yolox_s_8xb8-300e_coco.py"}
    with pytest.raises(
        InvalidConfig, match="12 training images, or groups of them, cannot make 13 folds"
    ):
        DetectorTraining(**options, fold=Fold(number=0, of=13)).check(dataset)


def test_a_config_is_parsed_again_where_the_parser_met_another_thread(configs, monkeypatch):
    name, parse, calls = str(configs / "new.py"), ast.parse, []
    whole = config_files(name)

    def racing(text):
        calls.append(text)
        if len(calls) == 1:
            raise SystemError("AST constructor recursion depth mismatch (before=195, after=79)")
        return parse(text)

    monkeypatch.setattr(ast, "parse", racing)
    assert config_files(name) == whole


def test_hosts_share_a_detectors_processes_and_the_key_does_not_know():
    alone = DetectorConfig(num_processes=4)
    hosts = {"num_nodes": 2, "rdzv_endpoint": "first:29400", "distributed_backend": "gloo"}
    shared = DetectorConfig(num_processes=4, **hosts)
    assert (alone.num_gpus, shared.num_gpus) == (4, 2)
    assert shared.keyed() == alone.keyed() != DetectorConfig().keyed()
    with pytest.raises(ValidationError, match="num_processes 1 is not a multiple of num_nodes 2"):
        DetectorConfig(**hosts)


def test_nccl_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr("models.precision.has_gpu", lambda: False)
    with pytest.raises(InvalidConfig, match="distributed_backend=nccl needs a GPU"):
        DetectorTraining(distributed_backend="nccl").check_without_data()
