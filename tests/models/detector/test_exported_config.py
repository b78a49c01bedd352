"""Configs of exported detectors: what MMEngine reads, without running it."""

import pytest
from mmengine.config import Config

from data.errors import InvalidModel
from models.detector.detector import Detector
from models.detector.exported_config import read_exported_config

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
