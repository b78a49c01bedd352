"""What is counted where the base model is somewhere else, or nowhere."""

import pytest

from data.errors import InvalidConfig, InvalidModel
from models.generator.options import GeneratorConfig, NewModelConfig
from models.training.memory_table import base_shapes


def test_a_model_that_is_not_here_is_counted_as_stable_diffusion():
    shapes = base_shapes(GeneratorConfig(resolution=256))
    assert shapes.unet["sample_size"] == 32
    assert shapes.text_encoder.vocab_size == 49_408 + 65_536 + 2
    assert "is not on this machine" in shapes.source
    with pytest.raises(InvalidConfig, match="a new model is not counted"):
        base_shapes(GeneratorConfig(base_model=NewModelConfig()))


def test_a_base_model_that_is_nowhere_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match="neither a folder nor a hub id"):
        base_shapes(GeneratorConfig(base_model="/no/such/folder"))
    with pytest.raises(InvalidModel, match=r"base_model .* no file named config\.json"):
        base_shapes(GeneratorConfig(base_model=str(tmp_path)))
