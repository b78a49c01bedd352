"""The config that a detector is exported with, which names what is built; reading it runs nothing else."""

import ast
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from data.errors import InvalidConfig
from models.detector.config_files import set_everywhere
from models.detector.mmdetection import MODELS, TASK_UTILS, TRANSFORMS

_BUILT = (
    "mmcv.cnn.", "mmcv.transforms.", "mmdet.datasets.transforms.", "mmdet.models.", "mmengine.model.",
    "torch.nn.",
)  # fmt: skip
"""Where a type's dotted name may begin: MMEngine's registries call whatever else is given so.

Not `mmcv.ops.`: what looks for operators there knows them by their last name alone.
"""

_LIBRARIES = {"mmcv", "mmdet", "mmengine", "torch"}
"""Whose classes are there whenever a detector is loaded."""


def exported_config(config: Config) -> Config:
    """What is kept of a config: `model`, that initialises nothing, and `test_pipeline`."""
    model, pipeline = deepcopy((config.model, config.test_pipeline))
    set_everywhere(model, "init_cfg", None)
    for node in _nodes([model, pipeline]):
        if isinstance(kind := node.get("type"), str):
            node["type"] = _without_scope(kind)
    return Config({"model": model, "test_pipeline": pipeline})


def require_exportable(name: str, config: Config) -> None:
    """Refuse a config of which no exported detector could be loaded, before one is trained.

    Args:
        name: of the config, for the message.

    Raises:
        InvalidConfig: it has types of other libraries, or of modules that it imports.
    """
    exported = exported_config(config)
    object.__setattr__(exported, "_format_python_code", False)  # which takes long
    try:
        with TemporaryDirectory() as folder:
            exported.dump(Path(folder, "config.py"))
            read_exported_config(Path(folder, "config.py"))
    except ValueError as error:
        raise InvalidConfig(
            f"detector config {name!r}: detectors of it could not be loaded again: {error}. Name types as "
            "MMDetection registers them, such as ResNet"
        ) from error
    if foreign := sorted(set(_types(exported.to_dict())) & _own_types()):
        modules = (config.get("custom_imports") or {}).get("imports")
        raise InvalidConfig(
            f"detector config {name!r}: the types {foreign} are of modules that it imports ({modules}), and "
            "a detector is loaded without them: take MMDetection's own"
        )


def read_exported_config(path: Path) -> Config:
    """Read a file of assignments as MMEngine's `Config.dump` writes them.

    `Config.fromfile` would run it, and an artifact may come from a bucket.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else, or types of other libraries than those of detectors.
    """
    try:
        return Config(_assigned(path))
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{path.name} is no config: {error}") from error


def _assigned(path: Path) -> dict[str, Any]:
    body = ast.parse(path.read_text()).body
    found: dict[str, Any] = {}
    for item in body:
        match item:
            case ast.Assign(targets=[ast.Name(name)], value=value):
                found[name] = _value(value)
            case _:
                raise ValueError(f"{path.name}, line {item.lineno}: no value by name")
    foreign = sorted({kind for kind in _types(found) if not _is_built(kind)})
    if foreign:
        raise ValueError(f"{path.name} names types that are no part of a detector: {foreign}")
    return found


def _is_built(kind: str) -> bool:
    """Whether a type is the name of a detector's part; mmcv evaluates that of a suppression as Python."""
    is_name = all(part.isidentifier() for part in kind.split("."))
    return is_name and ("." not in kind or kind.startswith(_BUILT))


def _without_scope(kind: str) -> str:
    """A type of MMDetection's without the name of its registry.

    >>> _without_scope("mmdet.ResNet"), _without_scope("mmdet.models.backbones.ResNet")
    ('ResNet', 'mmdet.models.backbones.ResNet')
    """
    scope, _, name = kind.rpartition(".")
    return name if scope == "mmdet" else kind


def _own_types() -> set[str]:
    """Registered types of other packages than MMDetection and what it builds on."""
    registries: list[Registry] = [MODELS, TASK_UTILS, TRANSFORMS]
    found = set()
    for registry in registries:  # which grows meanwhile
        registries += [] if registry.parent is None else [registry.parent]
        kinds = registry.module_dict.items()
        found |= {k for k, kind in kinds if kind.__module__.partition(".")[0] not in _LIBRARIES}
    return found


def _types(value: Any) -> Iterator[str]:
    """Every `type` of what is to be built."""
    return (str(node["type"]) for node in _nodes(value) if "type" in node)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary in nested values."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _nodes(item)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name("dict"), args=[], keywords=keywords) if all(
            item.arg for item in keywords
        ):
            return {item.arg: _value(item.value) for item in keywords}
        case ast.Call(func=ast.Name("dict"), args=[ast.Dict() as item], keywords=[]):
            return _value(item)
        case ast.Dict(keys, values) if all(keys):
            pairs = zip(keys, values, strict=True)
            return {ast.literal_eval(key): _value(value) for key, value in pairs}  # type: ignore[arg-type]
        case ast.List(items):
            return [_value(item) for item in items]
        case ast.Tuple(items):
            return tuple(map(_value, items))
        case _:
            return ast.literal_eval(node)
