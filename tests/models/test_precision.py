"""Precisions that need a GPU are refused where there is none."""

import pytest

from data.errors import InvalidConfig
from models.detector.options import DetectorTraining
from models.generator.options import GeneratorConfig

MIXED = [DetectorTraining(mixed_precision="bf16"), GeneratorConfig(mixed_precision="fp16")]


@pytest.mark.parametrize("options", MIXED)
def test_mixed_precision_without_a_gpu_is_refused_before_anything_is_trained(
    options, dataset, monkeypatch
):
    monkeypatch.setattr("models.precision.has_gpu", lambda: False)
    with pytest.raises(InvalidConfig, match=r"mixed_precision=.* needs a GPU, and there is none"):
        options.check(dataset)
    monkeypatch.setattr("models.precision.has_gpu", lambda: True)
    options.check(dataset)
