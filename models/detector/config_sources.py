"""The files behind an MMDetection config, found without running it or importing MMDetection."""

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data.errors import InvalidConfig

_PACKAGED = "mmdet::"


def config_path(name: str) -> Path:
    """File of a config packaged with MMDetection (`mmdet::…`), or of the user's.

    Raises:
        InvalidConfig: there is no such file.
    """
    if not name.startswith(_PACKAGED):
        path = Path(name)
    elif (package := _package_folder("mmdet")) is None:
        raise InvalidConfig("MMDetection is not installed: pip install mmdet")
    else:
        path = package / ".mim" / "configs" / name.removeprefix(_PACKAGED)
    if not path.is_file():
        where = "packaged with MMDetection" if name.startswith(_PACKAGED) else "of that path"
        raise InvalidConfig(f"detector config {name!r}: there is no such file {where} ({path})")
    return path


def config_files(name: str) -> list[Path]:
    """A config's file and all that it inherits from, by `_base_` or by `read_base()`.

    Raises:
        InvalidConfig: the config does not exist.
    """
    files = [config_path(name).resolve()]
    for file in files:  # which grows meanwhile
        files += [base for base in map(Path.resolve, _bases(file)) if base not in files]
    return files


def named_weights(name: str) -> set[str]:
    """Weights that a config or one it inherits from names under `checkpoint`: paths and addresses.

    Not all of them need be used: a config may put another model in the place of the inherited one.
    """
    return {found for file in config_files(name) for found in _checkpoints(_parse(file))}


def dotted(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested options to dotted names, later ones over earlier ones.

    A mapping with `_delete_` replaces a whole node of the config and is left as it is.

    >>> dotted({"a.b": 1, "a": {"b": 2, "c": {"_delete_": True}}})
    {'a.b': 2, 'a.c': {'_delete_': True}}
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and "_delete_" not in value:
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def weights_in(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Weights that overrides name, by the option's dotted name."""
    found: dict[str, str] = {}
    for name, value in options.items():
        full = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= weights_in(value, f"{full}.")
        elif full.endswith("init_cfg.checkpoint") and isinstance(value, str):
            found[full] = value
    return found


def _parse(file: Path) -> ast.Module:
    try:
        return _tree(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])  # only MMEngine can say what is wrong with it


@lru_cache(maxsize=100)
def _tree(text: bytes) -> ast.Module:
    """What a Python file says, to be read alone: many detectors of a study have the same configs."""
    try:
        return ast.parse(text)
    except SystemError:  # of Python before 3.11.8, where another thread parses too (gh-106905)
        return ast.parse(text)


def _bases(file: Path) -> Iterator[Path]:
    """Files that a config inherits from, as far as they are there."""
    if file.suffix != ".py":
        return
    for node in _parse(file).body:
        found: Iterator[Path] = iter(())
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            found = _named_bases(file, node.value)
        elif isinstance(node, ast.With) and "read_base" in ast.unparse(node.items[0]):
            found = _imported_bases(file, node)
        yield from (path for path in found if path.is_file())


def _named_bases(file: Path, value: ast.expr) -> Iterator[Path]:
    try:
        names = ast.literal_eval(value)
    except ValueError:
        return
    for name in [names] if isinstance(names, str) else names:
        yield config_path(name) if name.startswith(_PACKAGED) else file.parent / name


def _imported_bases(file: Path, block: ast.With) -> Iterator[Path]:
    """Modules that `with read_base():` imports from, relative ones and those of packages."""
    for node in block.body:
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = (node.module or "").split(".")
        folder = file.parent
        if node.level:
            folder = [file.parent, *file.parent.parents][node.level - 1]
        elif (package := _package_folder(parts[0])) is not None:
            folder, parts = package, parts[1:]
        for names in ([], *([item.name] for item in node.names)):
            yield Path(folder, *filter(None, parts), *names).with_suffix(".py")


def _package_folder(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _checkpoints(tree: ast.Module) -> Iterator[str]:
    """Texts under the name `checkpoint` in a dictionary, written in either way, or by a variable."""
    texts = {
        ast.unparse(node.targets[0]): node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        pairs: list[tuple[Any, ast.expr]] = []
        if isinstance(node, ast.Dict):
            keys = (getattr(key, "value", None) for key in node.keys)
            pairs = list(zip(keys, node.values, strict=True))
        elif isinstance(node, ast.Call):
            pairs = [(item.arg, item.value) for item in node.keywords]
        for key, value in pairs:
            constant = texts.get(value.id, value) if isinstance(value, ast.Name) else value
            text = getattr(constant, "value", None)
            if key == "checkpoint" and isinstance(text, str):
                yield text
