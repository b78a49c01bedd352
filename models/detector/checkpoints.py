"""Reading other people's PyTorch checkpoints without running what is in them."""

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data.errors import InvalidModel


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights, and the names of the classes where the checkpoint knows them.

    Attributes:
        weights: parameter name to tensor, on the CPU.
        classes: in label order; None where not recorded.
    """

    weights: dict[str, Tensor]
    classes: tuple[str, ...] | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file or a checkpoint of MMEngine's or torch's own format.

    A checkpoint of MMEngine holds its message hub, whose classes `torch.load(weights_only=True)`
    refuses. Here such objects are left out: nothing but tensors and plain containers is made. Swin's and
    others' own have their weights under `model`.

    Raises:
        InvalidModel: the file is missing, or not a checkpoint.
    """
    try:
        if path.suffix == ".safetensors":
            return Checkpoint(load_file(path), None)
        content = torch.load(
            path, map_location="cpu", pickle_module=_TENSORS_ONLY, weights_only=False
        )
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, EOFError,
            SafetensorError, pickle.UnpicklingError) as error:  # fmt: skip
        raise InvalidModel(f"{path} is no checkpoint that can be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{path} holds no state_dict: give a checkpoint of MMDetection")
    weights = content.get("state_dict", content.get("model", content))
    if not isinstance(weights, dict):
        weights = {}
    tensors = {name: item for name, item in weights.items() if isinstance(item, Tensor)}
    if not tensors:
        raise InvalidModel(f"{path} holds no state_dict with tensors: give one of MMDetection's")
    return Checkpoint(tensors, _classes(content.get("meta")))


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,  # noqa: FBT001, FBT002  # as MMEngine calls it
) -> dict[str, dict[str, Tensor]]:
    """Download a checkpoint into torch's cache, once, and read it.

    MMEngine's function of this name runs what is in the file.

    Raises:
        OSError: there is no connection.
        InvalidModel: what is there is no checkpoint.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), "checkpoints"))
    path = folder / Path(urlsplit(url).path).name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=progress)
    return {"state_dict": read_checkpoint(path).weights}


def load_from_local(filename: str, map_location: Any = None) -> dict[str, dict[str, Tensor]]:
    """Read a checkpoint on this machine; MMEngine's function refuses its own, which hold objects.

    Raises:
        InvalidModel: what is there is no checkpoint.
    """
    return {"state_dict": read_checkpoint(Path(filename).expanduser()).weights}


def _classes(meta: Any) -> tuple[str, ...] | None:
    """MMDetection 3 records `dataset_meta`, MMDetection 2 had `CLASSES`."""
    if not isinstance(meta, dict):
        return None
    known = meta.get("dataset_meta", meta)
    names = (known.get("classes") or known.get("CLASSES")) if isinstance(known, dict) else None
    if not isinstance(names, list | tuple) or not all(isinstance(item, str) for item in names):
        return None
    return tuple(names)


class _LeftOut:
    """Stands for an object whose class is not loaded; swallows what a pickle does to it."""

    def __init__(self, *arguments: Any, **options: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return 0

    def append(self, item: Any) -> None:
        """Forget the item."""

    def extend(self, items: Any) -> None:
        """Forget the items."""


_HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,  # noqa: SLF001  # what torch.save writes
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,  # noqa: SLF001  # likewise
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,  # noqa: SLF001  # likewise
    ("torch", "Size"): torch.Size,
}


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers, and `_LeftOut` in place of everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Look a global up among the harmless ones."""
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        return _HARMLESS.get((module, name), _LeftOut)


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_TENSORS_ONLY = cast(
    "Any", SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="tensors only")
)
"""Given to `torch.load` in place of the module `pickle`."""
