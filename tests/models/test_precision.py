"""Which GPUs there are; precisions that need one are refused where there is none."""

import pytest

from data.errors import InvalidConfig
from models.detector.options import DetectorTraining
from models.generator.options import GeneratorConfig
from models.precision import visible_gpus

MIXED = [DetectorTraining(mixed_precision="bf16"), GeneratorConfig(mixed_precision="fp16")]


@pytest.mark.parametrize("options", MIXED)
def test_mixed_precision_without_a_gpu_is_refused_before_anything_is_trained(options, monkeypatch):
    monkeypatch.setattr("models.precision.has_gpu", lambda: False)
    with pytest.raises(InvalidConfig, match=r"mixed_precision=.* needs a GPU, and there is none"):
        options.check_without_data()
    monkeypatch.setattr("models.precision.has_gpu", lambda: True)
    options.check_without_data()


@pytest.mark.parametrize(
    ("files", "variable", "gpus"),
    [
        ("nvidia0 nvidia5 nvidiactl", None, ("0", "1")),
        ("nvidia0 nvidia1 nvidiactl", "1,0", ("1", "0")),
        ("nvidia0 nvidia1", "GPU-8932f937, MIG-a", ("GPU-8932f937", "MIG-a")),
        ("nvidia0 nvidia1", "1,-1,0", ("1",)),
        ("nvidia0 nvidia1", "0,2,1", ("0",)),
        ("nvidia0", "", ()),
        ("nvidia0", "-1", ()),
        ("nvidiactl null", "0,1", ()),
        ("kfd", None, ("0",)),
        ("dxg", "0,1", ("0", "1")),
    ],
)
def test_gpus_are_those_with_a_file_that_the_variable_leaves(
    files, variable, gpus, tmp_path, monkeypatch
):
    for name in files.split():
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus(tmp_path) == gpus
