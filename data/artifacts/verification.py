"""Whether artifacts are what they were when they were made."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime

from data.artifacts.manifest import MANIFEST_NAME
from data.artifacts.store import ArtifactStore
from data.artifacts.trash import Removal, opened


def sampled(references: Iterable[str], part: int, parts: int) -> list[str]:
    """One of so many parts of the artifacts, which have all of them together.

    Args:
        references: `kind/key` of each.
        part: from 1.
    """
    return [item for item in references if int(item.partition("/")[2], 16) % parts == part - 1]


def damaged_files(
    store: ArtifactStore, reference: str, *, fast: bool = False, remembered: bool = False
) -> list[str]:
    """Names of the files of an artifact that are missing or are not what they were.

    Args:
        fast: look at sizes alone.
        remembered: as of `ArtifactStore.damage`.
    """
    manifest = store.manifest(reference)
    if manifest is None:
        return [MANIFEST_NAME]
    return store.wrong_sizes(manifest) if fast else store.damage(manifest, remembered=remembered)


def remove_damaged(store: ArtifactStore, references: Collection[str]) -> list[str]:
    """Move artifacts that are still damaged to the trash, so that they are made again when they are needed.

    Returns:
        Those that were moved; one that somebody works on stays.

    Raises:
        StorageError: the trash cannot be used.
    """
    moved = []
    with opened(store) as trash:
        for reference in references:
            with store.lock_if_free(*reference.split("/")) as is_free:
                if is_free and damaged_files(store, reference):
                    now = datetime.now(UTC).isoformat()
                    trash.move(reference, Removal(reference, now, "damaged, moved away by verify"))
                    moved.append(reference)
    return moved
