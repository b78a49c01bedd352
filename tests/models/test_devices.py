import pytest
import torch

from models.devices import resolve_precision, settled_precision


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
