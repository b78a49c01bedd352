from models.config import DetectorConfig, GeneratorConfig
from tasks.stages import foreign_files


def test_other_weights_of_the_same_size_are_another_base_model(tmp_path):
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    config = GeneratorConfig(base_model=str(tmp_path))
    weights.write_bytes(b"0123")
    before = foreign_files(config)
    weights.write_bytes(b"0124")
    assert foreign_files(config) != before
    weights.write_bytes(b"0123")
    assert foreign_files(config) == before


def test_a_config_that_a_detectors_config_inherits_from_is_part_of_it(tmp_path):
    (tmp_path / "base").mkdir()
    base = tmp_path / "base" / "schedule.py"
    (tmp_path / "middle.py").write_text("_base_ = ['base/schedule.py', 'detector.py']")
    (tmp_path / "detector.py").write_text("_base_ = 'middle.py'")
    config = DetectorConfig(config=str(tmp_path / "detector.py"))
    base.write_text("lr = 1")
    before = foreign_files(config)
    base.write_text("lr = 2")
    assert foreign_files(config) != before
    base.write_text("lr = 1")
    assert foreign_files(config) == before
