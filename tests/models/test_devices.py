import pytest
import torch

from data.errors import InvalidConfig
from models import devices
from models.devices import default_device, full_float32, resolve_precision, settled_precision


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
