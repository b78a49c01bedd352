"""Base models of the Hugging Face hub: which commit a name stands for, and what is not here yet."""

from pathlib import Path

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
