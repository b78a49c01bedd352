from functools import partial

import pytest
import torch
from torch import nn

from data.errors import InvalidConfig
from models import devices
from models.devices import (
    default_device,
    full_float32,
    norms_in_precision_of_input,
    resolve_precision,
    settled_precision,
)


@pytest.mark.parametrize(
    ("gpu", "amx", "bf16", "chosen"),
    [
        (True, False, True, "bf16"),
        (True, True, False, "fp16"),
        (False, True, False, "bf16"),
        (False, False, False, "no"),
    ],
)
def test_auto_is_what_the_hardware_multiplies(monkeypatch, gpu, amx, bf16, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto") == chosen
    assert resolve_precision("no") == "no"


def test_a_precision_is_settled_once(tmp_path):
    assert settled_precision(tmp_path, "auto") == resolve_precision("auto")
    (tmp_path / "precision.txt").write_text("fp16")
    assert settled_precision(tmp_path, "auto") == "fp16"
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("precision", "allowed"), [("no", False), ("bf16", True)])
def test_full_precision_is_full_in_convolutions_too(precision, allowed):
    before = torch.backends.cudnn.allow_tf32
    with full_float32(precision):
        assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.backends.cudnn.allow_tf32 is before


def test_bf16_is_refused_where_a_gpu_would_emulate_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(InvalidConfig, match="does not multiply bfloat16 matrices: use auto, fp16"):
        resolve_precision("bf16")


def test_a_driver_older_than_torch_is_one_sentence_and_no_training_on_the_cpu(monkeypatch):
    def init():
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040).\nMore"
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    devices._refuse_unusable_gpu.cache_clear()
    with pytest.raises(InvalidConfig, match=r"cannot use the GPU .* too old \(found version 11040"):
        default_device()
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    assert default_device() == torch.device("cpu")
    devices._refuse_unusable_gpu.cache_clear()


@pytest.mark.parametrize("new", [partial(nn.GroupNorm, 4, 16), partial(nn.LayerNorm, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_have_the_precision_of_their_input_and_float32_statistics(new, dtype):
    torch.manual_seed(0)
    norm = new()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    inputs = (5 + 0.1 * torch.randn(8, 16, 4, 16)).to(dtype)  # of means far above spreads
    expected = norm(inputs.float())
    expected.square().sum().backward()
    changed = nn.Sequential(new())
    changed[0].load_state_dict(norm.state_dict())
    norms_in_precision_of_input(changed)
    with torch.autocast("cpu", torch.float16):  # that of a CPU has no say here: that of a GPU would
        found = changed(inputs)
    found.float().square().sum().backward()
    assert found.dtype == dtype
    near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 8 * torch.finfo(dtype).eps}
    torch.testing.assert_close(found.float(), expected, **near)
    for name, parameter in norm.named_parameters():
        of_changed = changed.get_parameter(f"0.{name}")
        assert of_changed.dtype == torch.float32
        error = (of_changed.grad - parameter.grad).norm() / parameter.grad.norm()
        assert error < max(16 * torch.finfo(dtype).eps, 1e-5)
    assert list(changed.state_dict()) == [f"0.{name}" for name in norm.state_dict()]
