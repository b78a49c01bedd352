"""Reading the config that a detector was exported with, which names what is built and runs nothing else."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

_BUILT = (
    "mmcv.cnn.", "mmcv.transforms.", "mmdet.datasets.transforms.", "mmdet.models.", "mmengine.model.",
    "torch.nn.",
)  # fmt: skip
"""Where a type's dotted name may begin: MMEngine's registries call whatever else is given so."""


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
    foreign = sorted(kind for kind in _types(found) if "." in kind and not kind.startswith(_BUILT))
    if foreign:
        raise ValueError(f"{path.name} names types that are no part of a detector: {foreign}")
    return found


def _types(value: Any) -> Iterator[str]:
    """Every `type` of what is to be built."""
    if isinstance(value, dict):
        if "type" in value:
            yield str(value["type"])
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _types(item)


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
