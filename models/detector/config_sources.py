"""The files behind an MMDetection config, found without running it or importing MMDetection."""

import ast
from collections.abc import Iterator, Mapping
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


def named_weights(name: str, overrides: Mapping[str, Any]) -> set[str]:
    """Weights that a model of this config starts from: paths and addresses under `init_cfg`.

    Args:
        overrides: options laid over the config; where they say `init_cfg`, the config's are not used.
    """
    own = set(_checkpoints_of_values(overrides))
    if own or "init_cfg" in str(overrides):
        return own
    return {found for file in config_files(name) for found in _checkpoints(_parse(file))}


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])  # only MMEngine can say what is wrong with it


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


def _checkpoints(tree: ast.AST) -> Iterator[str]:
    """Texts that stand under the name `checkpoint` in a dictionary, written in either way."""
    for node in ast.walk(tree):
        pairs: list[tuple[Any, ast.expr]] = []
        if isinstance(node, ast.Dict):
            pairs = [
                (getattr(k, "value", None), v) for k, v in zip(node.keys, node.values, strict=True)
            ]
        elif isinstance(node, ast.Call):
            pairs = [(item.arg, item.value) for item in node.keywords]
        for key, value in pairs:
            if (
                key == "checkpoint"
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                yield value.value


def _checkpoints_of_values(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _checkpoints_of_values(value)
        elif name.rpartition(".")[2] == "checkpoint" and isinstance(value, str):
            yield value
