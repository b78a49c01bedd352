"""Base models, of the Hugging Face hub or in a folder: which one it is, and whether it is all here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from data.errors import InvalidModel

MODEL_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
"""Folders of a Stable Diffusion folder."""

AUTOENCODERS = ("AutoencoderKL", "PatchAutoencoder")
"""Classes; the second is that of the small models that the project makes."""

_DIFFUSERS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
)
_WEIGHTS = {
    "unet": _DIFFUSERS,
    "vae": _DIFFUSERS,
    "text_encoder": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}
"""The files of which the first that a part has is loaded; those of a variant, such as `fp16`, are not."""

_AGAIN = "download it again"
_INDEX = "model_index.json"
_LARGEST_PART = "unet/diffusion_pytorch_model"
_SECONDS = 1.5
_NEITHER = "train_generator.base_model {!r} is neither a folder nor a hub id: {}"


def hub_commit(name: str, revision: str) -> str:
    """The commit of a model on the hub, from the local cache where it is there.

    Raises:
        InvalidModel: the name is no hub id, the hub has no such model, or it cannot be reached.
    """
    from huggingface_hub import hf_hub_download, model_info  # noqa: PLC0415  # slow, and for hub ids alone
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # noqa: PLC0415  # likewise

    try:
        path = _cached(name, _INDEX, revision)
        if path is None:
            # Where there is no connection this says so at once; a download tries for half a minute.
            model_info(name, revision=revision, timeout=_SECONDS)
            path = hf_hub_download(name, _INDEX, revision=revision, etag_timeout=_SECONDS)
    except HFValidationError as error:
        raise InvalidModel(_NEITHER.format(name, error)) from error
    except (OSError, ValueError, HTTPError) as error:  # the hub's errors derive from these
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


def require_stable_diffusion(folder: Path) -> None:
    """Refuse a folder that a training could not begin with, before the steps before it are made.

    Raises:
        InvalidModel: a part is missing, cut short or of another family.
    """
    missing = [name for name in MODEL_PARTS if not (folder / name).is_dir()]
    if missing:
        raise InvalidModel(
            f"train_generator.base_model {folder} is no Stable Diffusion folder: it has no "
            + ", ".join(missing)
        )
    unet, vae, text = (_json(folder / name / "config.json") for name in _WEIGHTS)
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    require_family(str(folder), unet, vae, scheduler, text)
    require_architecture(unet, vae, text.get("text_config") or text)
    require_whole_weights(folder)


def require_family(
    name: str,
    unet: Mapping[str, Any],
    vae: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    text: Mapping[str, Any],
) -> None:
    """Refuse what would load with random weights, or train on another noise, without a word.

    Args:
        unet: configuration of that part, and so on.

    Raises:
        InvalidModel: a part is of another family than Stable Diffusion's.
    """
    for what, found, known in (
        ("UNet", unet.get("_class_name", "UNet2DConditionModel"), ("UNet2DConditionModel",)),
        ("autoencoder", vae.get("_class_name"), AUTOENCODERS),
        ("text encoder", text.get("model_type", "clip"), ("clip_text_model", "clip")),
        (
            "scheduler's prediction",
            scheduler.get("prediction_type", "epsilon"),
            ("epsilon", "v_prediction"),
        ),
    ):
        if found not in known:
            raise InvalidModel(f"{name}: {what} {found} is none of {', '.join(known)}")
    if "beta_start" not in scheduler:
        raise InvalidModel(
            f"{name}: scheduler {scheduler.get('_class_name')} is not of DDPM's family: it has no betas"
        )


def require_architecture(
    unet: Mapping[str, Any], vae: Mapping[str, Any], text: Mapping[str, Any]
) -> None:
    """Refuse parts that do not fit together as those of Stable Diffusion v1 do.

    Args:
        unet: configuration of that part, and so on; what it leaves out is the library's default.

    Raises:
        InvalidModel: they are of another architecture.
    """
    latent_channels = vae.get("latent_channels", 4)
    for name, found, needed in (
        ("input channels of the UNet", unet.get("in_channels", 4), latent_channels),
        ("output channels of the UNet", unet.get("out_channels", 4), latent_channels),
        (
            "cross_attention_dim of the UNet",
            unet.get("cross_attention_dim", 1280),
            text.get("hidden_size", 512),
        ),
        ("addition_embed_type of the UNet", unet.get("addition_embed_type"), None),
        ("class_embed_type of the UNet", unet.get("class_embed_type"), None),
    ):
        if found != needed:
            raise InvalidModel(
                f"the base model is not of Stable Diffusion v1's architecture: {name} is {found} and "
                f"must be {needed}"
            )


def require_whole_weights(folder: Path) -> None:
    """Refuse what a broken download leaves of the weights that are loaded; of each file the header is read.

    Raises:
        InvalidModel: a file of weights is missing or cut short, or an index names one that is not there.
    """
    for part, names in _WEIGHTS.items():
        there = [path for name in names if (path := folder / part / name).exists()]
        if not there:
            raise InvalidModel(f"{folder / part} has no {' or '.join(names[::2])}: {_AGAIN}")
        path, files = there[0], [there[0]]
        if path.suffix == ".json":
            shards = _json(path).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise InvalidModel(f"{path} is missing or damaged (no weight_map): {_AGAIN}")
            files = [path.parent / name for name in sorted(set(shards.values()))]
            missing = [file.name for file in files if not file.exists()]
            if missing:
                raise InvalidModel(f"{path} names {', '.join(missing)}, which is missing: {_AGAIN}")
        for file in files:
            if damage := _damage(file):
                raise InvalidModel(f"{file} is cut short or damaged ({damage}): {_AGAIN}")


def _damage(path: Path) -> str | None:
    """What is wrong with a file of weights, as far as its header and its length tell."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "numpy"):
                return None
        except SafetensorError as error:
            return str(error)
    with path.open("rb") as file:
        is_pickle = file.read(2) == b"\x80\x02"  # as torch wrote them before its archives
    return None if is_pickle or is_zipfile(path) else "torch's archive has no end"


def _json(path: Path) -> Mapping[str, Any]:
    """Content of a file of JSON.

    Raises:
        InvalidModel: there is none, or it is cut short.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path} is missing or damaged ({error}): {_AGAIN}") from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{path} is missing or damaged (no object): {_AGAIN}")
    return content


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
