"""What is in a store: artifacts, work in progress, and what people call them."""

import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from data.artifacts.files import names_in, storage_errors
from data.artifacts.identity import KEY_DIGITS
from data.artifacts.manifest import MANIFEST_NAME
from data.artifacts.records import record_files
from data.artifacts.store import WORK_FOLDER
from data.errors import ArtifactMissing, StorageError

KEY = re.compile(r"[0-9a-f]{32}")


def require_store(root: Path) -> None:
    """Refuse a folder that no run was recorded in: it may be anything.

    Raises:
        ArtifactMissing: it is no artifact store.
    """
    if not record_files(root):
        raise ArtifactMissing(
            f"no artifact store at {root}, nothing is recorded in its folder runs: set DETDIFFUSION_HOME to "
            "one, or run `detdiffusion run demo` first"
        )


def artifacts(root: Path) -> list[str]:
    """`kind/key` of every artifact, intact or not."""
    return [
        f"{kind}/{key}"
        for kind in folders(root)
        if not kind.startswith(".")
        for key in folders(root / kind)
        if KEY.fullmatch(key)
    ]


def linked(root: Path) -> list[str]:
    """`kind/key` of every artifact that a link leads to: hits, and nobody's to move.

    Raises:
        StorageError: a link leads nowhere, so that nobody knows what is there at other times.
    """
    kinds = [kind for kind in folders(root) if not kind.startswith(".")]
    found = [(kind, key) for kind in _links(root) for key in names_in(root / kind)]
    found += [(kind, key) for kind in kinds for key in _links(root / kind)]
    return [f"{kind}/{key}" for kind, key in found if KEY.fullmatch(key)]


def unfinished(root: Path) -> list[str]:
    """`kind/key` of every artifact that there is a work folder of."""
    return artifacts(root / WORK_FOLDER) if WORK_FOLDER in folders(root) else []


def folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, in order; links are none.

    Raises:
        StorageError: it cannot be read.
    """
    with storage_errors(folder):
        try:
            with os.scandir(folder) as entries:
                return sorted(
                    entry.name for entry in entries if entry.is_dir(follow_symlinks=False)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []


def _links(folder: Path) -> list[str]:
    """Names of the links to folders in a folder, less hidden ones."""
    with storage_errors(folder):
        with os.scandir(folder) as entries:
            links = [Path(entry.path) for entry in entries if entry.is_symlink()]
        links = [link for link in links if not link.name.startswith(".")]
        for link in links:
            if not link.exists():
                raise StorageError(
                    f"{link} leads nowhere, so nobody knows what the artifacts there need: mount what it "
                    "leads to, or take the link away"
                )
        return [link.name for link in links if link.is_dir()]


def find(text: str, references: Collection[str], ids: Collection[str] = ()) -> str:
    """What a user means by the beginning of a key, also after its kind, or of a record's id.

    Args:
        references: `kind/key` of all artifacts that can be meant.
        ids: of all records that can be meant.

    Raises:
        ArtifactMissing: nothing begins so, or more than one thing.
    """
    kind, _, prefix = text.rpartition("/")
    found = [item for item in references if _begins(item, kind, prefix)]
    found += [item for item in ids if item.startswith(text)]
    if not text or not found:
        raise ArtifactMissing(
            f"nothing there begins with {text!r}: `detdiffusion ls` (--remote) shows what there is"
        )
    if len(found) > 1:
        raise ArtifactMissing(
            f"{text!r} is the beginning of {len(found)} things, {found[0]} and {found[1]} among them: give "
            "more of it"
        )
    return found[0]


def _begins(reference: str, kind: str, prefix: str) -> bool:
    own, _, key = reference.partition("/")
    return key.startswith(prefix) and kind in {"", own}


def short_keys(references: Collection[str]) -> Mapping[str, str]:
    """The shortest beginning of each artifact's key that no other's has, eight digits at least.

    >>> short_keys(["a/0123456789", "b/0123456780", "a/f123456780"])
    {'a/0123456789': '0123456789', 'b/0123456780': '0123456780', 'a/f123456780': 'f1234567'}
    """
    keys = {item: item.partition("/")[2] for item in references}
    ordered = sorted(keys.values())
    shared = [len(os.path.commonprefix(pair)) for pair in pairwise(ordered)]  # noqa: RUF071  # of letters
    neighbours = zip(ordered, [0, *shared], [*shared, 0], strict=bool(ordered))
    short = {
        key: key[: max(before + 1, after + 1, KEY_DIGITS)] for key, before, after in neighbours
    }
    return {item: short[key] for item, key in keys.items()}


def made_at(root: Path, reference: str) -> float:
    """When an artifact was made, seconds since the epoch; 0 where its manifest is missing."""
    with suppress(FileNotFoundError):
        return (root / reference / MANIFEST_NAME).stat().st_mtime
    return 0.0


def tree(folder: Path) -> tuple[int, float]:
    """Bytes of all files in a folder, and when the last of them was changed; links are not followed."""
    size, changed = 0, 0.0
    for parent, _, names in os.walk(folder):
        for name in ("", *names):
            try:
                entry = os.lstat(f"{parent}/{name}")
            except FileNotFoundError:  # work goes on meanwhile
                continue
            size += entry.st_size if name else 0
            changed = max(changed, entry.st_mtime)
    return size, changed
