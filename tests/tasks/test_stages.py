from models.config import GeneratorConfig
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
