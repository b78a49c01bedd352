"""Base models, of the Hugging Face hub or in a folder: which one it is, and whether it is all here."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from data.errors import InvalidModel

_INDEX = "model_index.json"
_LARGEST_PART = "unet/diffusion_pytorch_model"
_SECONDS = 1.5
_NEITHER = "train_generator.base_model {!r} is neither a folder nor a hub id: {}"


def hub_commit(name: str, revision: str) -> str:
    """The commit of a model on the hub, from the local cache where it is there.

    Raises:
        InvalidModel: the name is no hub id, the hub has no such model, or it cannot be reached.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415  # slow, and for hub ids alone
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415  # likewise

    try:
        path = _cached(name, _INDEX, revision) or hf_hub_download(
            name, _INDEX, revision=revision, etag_timeout=_SECONDS
        )
    except HFValidationError as error:
        raise InvalidModel(_NEITHER.format(name, error)) from error
    except (OSError, ValueError) as error:  # the hub's errors derive from these
        raise InvalidModel(
            f"train_generator.base_model {name!r} is no folder, and no model of the Hugging Face hub that "
            f"is in the cache or can be reached (revision {revision}): give the path of a Stable Diffusion "
            f"folder. {str(error).splitlines()[0]}"
        ) from error
    return Path(path).parent.name


def missing_downloads(name: str, revision: str) -> tuple[str, ...]:
    """What of a model is still to be fetched."""
    commit = hub_commit(name, revision)
    if any(_cached(name, f"{_LARGEST_PART}{end}", commit) for end in (".safetensors", ".bin")):
        return ()
    return (f"{name} (revision {revision}) from the Hugging Face hub",)


def require_whole_weights(folders: Iterable[Path]) -> None:
    """Refuse what a broken download leaves; of each file the header is read.

    Raises:
        InvalidModel: a file of weights is cut short, or an index names one that is not there.
    """
    again = "download it again"
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        if path.name.endswith(".safetensors.index.json"):
            names = set(json.loads(path.read_text())["weight_map"].values())
            missing = sorted(name for name in names if not (path.parent / name).exists())
            if missing:
                raise InvalidModel(f"{path} names {', '.join(missing)}, which is missing: {again}")
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, "numpy"):
                    pass
            except SafetensorError as error:
                raise InvalidModel(f"{path} is cut short or damaged ({error}): {again}") from error


def folder_here(name: str, revision: str) -> Path | None:
    """Folder of a model that is one, or whose configurations are in the local cache.

    Raises:
        InvalidModel: the name is neither a folder nor a hub id.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415  # as above

    try:
        config = _cached(name, "unet/config.json", revision)
    except HFValidationError as error:
        raise InvalidModel(_NEITHER.format(name, error)) from error
    return Path(config).parents[1] if config else None


def _cached(name: str, file: str, revision: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415  # as above

    found = try_to_load_from_cache(name, file, revision=revision)
    return found if isinstance(found, str) else None
