import os
import pickle
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.errors import InvalidModel
from models.detector.checkpoints import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.num": torch.tensor(7)}
pytestmark = pytest.mark.filterwarnings("ignore")  # MMEngine warns at import


class Harmful:
    """Would make a file where it is unpickled in full."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_mmengine_is_read_without_its_objects(tmp_path, zipped):
    from mmengine.logging import HistoryBuffer

    path, trace = tmp_path / "epoch_1.pth", tmp_path / "trace"
    content = {
        "meta": {"dataset_meta": {"classes": ("cat", "dog")}, "time": np.float64(1.5)},
        "state_dict": WEIGHTS,
        "message_hub": {"loss": HistoryBuffer([1.0, 2.0], [1, 1]), "harm": Harmful(trace)},
        "optimizer": {"state": {0: {"step": np.int64(3)}}},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    found = read_checkpoint(path)
    assert found.classes == ("cat", "dog")
    assert found.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert not trace.exists()


def test_bare_weights_and_safetensors_are_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "bare.pth")
    torch.save({"model": WEIGHTS, "epoch": 1}, tmp_path / "swin.pth")
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    for name in ("bare.pth", "swin.pth", "model.safetensors"):
        found = read_checkpoint(tmp_path / name)
        assert found.classes is None
        assert torch.equal(found.weights["a.weight"], WEIGHTS["a.weight"])


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "text.safetensors").write_text("no checkpoint")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"a": 1}}, tmp_path / "empty.pth")
    (tmp_path / "harm.pth").write_bytes(pickle.dumps(Harmful(tmp_path / "trace")))
    for name in ("text.pth", "text.safetensors", "list.pth", "empty.pth", "harm.pth", "none.pth"):
        with pytest.raises(InvalidModel, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "trace").exists()


def test_what_a_config_downloads_is_read_without_its_objects(tmp_path, monkeypatch):
    from mmengine.runner.checkpoint import load_checkpoint

    from models.detector import mmdetection  # noqa: F401  # which MMEngine's function is replaced by

    (tmp_path / "there").mkdir()
    content = {"state_dict": {"weight": torch.ones(1, 2)}, "harm": Harmful(tmp_path / "trace")}
    torch.save(content, tmp_path / "there" / "net.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    layer = torch.nn.Linear(2, 1)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "there")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/net.pth"
        load_checkpoint(layer, address)
        server.shutdown()
    load_checkpoint(layer, address)  # from torch's cache
    assert torch.equal(layer.weight, torch.ones(1, 2))
    assert not (tmp_path / "trace").exists()


def test_a_backbones_checkpoint_by_mmengine_on_this_machine_is_read_without_its_objects(tmp_path):
    from mmengine.logging import HistoryBuffer
    from mmengine.runner.checkpoint import load_checkpoint

    from models.detector import mmdetection  # noqa: F401  # likewise

    layer = torch.nn.Linear(2, 1)
    hub = {"loss": HistoryBuffer([1.0], [1]), "harm": Harmful(tmp_path / "trace")}
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": {"weight": torch.ones(1, 2)}, "message_hub": hub}, path)
    load_checkpoint(layer, str(path))
    assert torch.equal(layer.weight, torch.ones(1, 2))
    assert not (tmp_path / "trace").exists()
    with pytest.raises(InvalidModel, match=r"none\.pth"):
        load_checkpoint(layer, str(tmp_path / "none.pth"))
