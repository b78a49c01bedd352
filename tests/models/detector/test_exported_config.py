"""Configs of exported detectors: what MMEngine reads, without running it."""

import sys

import pytest
from mmengine.config import Config

from data.errors import InvalidConfig, InvalidModel
from models.detector.config_files import build_config
from models.detector.config_sources import config_path
from models.detector.detector import Detector, write_detector
from models.detector.exported_config import read_exported_config, require_exportable
from models.detector.mmdetection import MODELS, register_all_modules
from models.detector.options import DetectorConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # MMEngine warns at import

CONFIG = {
    "model": {
        "type": "Net",
        "sizes": [(1, 2), (3.5, -4)],
        "nested": {"a-b": {"x": None}, "c": [{"y": True}, "it's", 1e-05]},
        "nothing": (),
    },
    "test_pipeline": [{"type": "Resize", "scale": (64, 64)}, {"type": "Pack", "meta_keys": ("a",)}],
}


def test_what_mmengine_dumps_is_read_as_mmengine_reads_it(tmp_path):
    Config(CONFIG).dump(tmp_path / "config.py")
    found = read_exported_config(tmp_path / "config.py")
    assert found.to_dict() == Config.fromfile(tmp_path / "config.py").to_dict() == CONFIG
    assert isinstance(found.test_pipeline[0].scale, tuple)


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.system('touch {trace}')",
        "model = __import__('os').system('touch {trace}')",
        "model = dict(a=open('{trace}', 'w'))",
        "model = dict(**dict(a=1))",
        "model = [x for x in (1, 2)]",
        "a.b = 1",
        "model = dict(",
        "model = {{[1]: 2}}",
        "model = dict(type='os.system', command='touch {trace}')",
        "test_pipeline = [dict(type='Compose', transforms=[dict(type='subprocess.run')])]",
        "model = dict(nms=dict(type='exec(bytes([49]))'))",
        "model = dict(nms=dict(type='torch.nn.Module and exec(bytes([49]))'))",
    ],
)
def test_nothing_in_a_detectors_folder_is_run(tmp_path, text):
    (tmp_path / "config.py").write_text(text.format(trace=tmp_path / "trace"))
    (tmp_path / "detector.json").write_text('{"categories": []}')
    with pytest.raises(ValueError, match=r"config\.py|malformed"):
        read_exported_config(tmp_path / "config.py")
    with pytest.raises(InvalidModel, match="detector folder"):
        Detector.load(tmp_path)
    assert not (tmp_path / "trace").exists()


def of_a_user(path, text):
    """A small detector's config with another backbone, completed for one class."""
    base = str(config_path("mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"))
    narrow = "depth=18), neck=dict(in_channels=[64, 128, 256, 512])"
    (path / "mine.py").write_text(f"_base_ = {base!r}\n{text}, {narrow})\n")
    settings = DetectorConfig(config=str(path / "mine.py"), pretrained=False)
    return build_config(settings, [], {1: "cat"}, path)


def test_types_with_mmdetections_scope_are_read_again(tmp_path):
    register_all_modules(init_default_scope=True)
    config = of_a_user(tmp_path, "model = dict(backbone=dict(type='mmdet.ResNet'")
    require_exportable("mine.py", config)
    write_detector(tmp_path / "out", MODELS.build(config.model), config, [(1, "cat")])
    assert Detector.load(tmp_path / "out").categories == ((1, "cat"),)
    assert config.model.backbone.type == "mmdet.ResNet"  # what trains is left as it is


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mmpretrain.ConvNeXt", r"loaded again: .*\['mmpretrain.ConvNeXt'\]"),
        ("own_blocks.OwnNet", r"loaded again: .*\['own_blocks.OwnNet'\]"),
        ("mmcv.ops.RoIAlign", r"\['mmcv.ops.RoIAlign'\]\. Name types as MMDetection registers"),
        ("OwnNet", r"the types \['OwnNet'\] are of modules that it imports \(\['own_blocks'\]\)"),
    ],
)
def test_a_config_of_which_no_detector_could_be_loaded_is_refused(
    tmp_path, monkeypatch, kind, message
):
    (tmp_path / "own_blocks.py").write_text(
        "from mmdet.models import ResNet\nfrom mmdet.registry import MODELS\n\n\n"
        "@MODELS.register_module(force=True)\nclass OwnNet(ResNet):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    imports = "custom_imports = dict(imports=['own_blocks'])\n"
    try:
        config = of_a_user(tmp_path, f"{imports}model = dict(backbone=dict(type={kind!r}")
        with pytest.raises(InvalidConfig, match=message):
            require_exportable("mine.py", config)
    finally:
        MODELS.module_dict.pop("OwnNet", None)
        sys.modules.pop("own_blocks", None)


def test_imports_of_a_config_for_what_is_not_exported_are_its_own_affair(tmp_path):
    imports = "custom_imports = dict(imports=['json'])\n"
    config = of_a_user(tmp_path, f"{imports}model = dict(backbone=dict(type='ResNet'")
    require_exportable("mine.py", config)
