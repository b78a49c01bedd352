"""Reading the config that a detector was exported with, which says what it is and runs nothing."""

import ast
from pathlib import Path
from typing import Any

from mmengine.config import Config


def read_exported_config(path: Path) -> Config:
    """Read a file of assignments as MMEngine's `Config.dump` writes them.

    `Config.fromfile` would run it, and an artifact may come from a bucket.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else.
    """
    try:
        body = ast.parse(path.read_text()).body
    except SyntaxError as error:
        raise ValueError(f"{path.name} is no config: {error}") from error
    found: dict[str, Any] = {}
    for item in body:
        match item:
            case ast.Assign(targets=[ast.Name(name)], value=value):
                found[name] = _value(value)
            case _:
                raise ValueError(f"{path.name}, line {item.lineno}: no value by name")
    return Config(found)


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
