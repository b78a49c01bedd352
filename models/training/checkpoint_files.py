"""A training's state in files, of which one is whole at any time."""

import os
from pathlib import Path

import torch

from data.errors import InvalidModel, StorageError
from models.newest_checkpoint import newest_checkpoint
from models.training.state import TrainingState

_CHECKPOINTS = "checkpoint-*.pt"


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a training, the oldest first."""
    return sorted(folder.glob(_CHECKPOINTS))


def save_checkpoint(state: TrainingState, fingerprint: str, folder: Path, keep: int) -> None:
    """Write the state to a temporary file, flush it to disk, rename it, and remove old ones.

    Args:
        keep: number of newest checkpoints that stay.

    Raises:
        StorageError: it cannot be written; the checkpoints before it are intact.
    """
    document = {name: part.state_dict() for name, part in state.parts().items()}
    document |= {"step": state.step, "fingerprint": fingerprint}
    temporary = folder / "checkpoint.tmp"
    try:
        with temporary.open("wb") as file:
            torch.save(document, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch hides the cause in a RuntimeError
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"the checkpoint of step {state.step} cannot be written to {folder}: {error}. Make room and "
            f"run again: it goes on from {newest_checkpoint(checkpoints(folder)) or 'the start'}"
        ) from error
    temporary.replace(folder / f"checkpoint-{state.step:08d}.pt")
    for path in checkpoints(folder)[:-keep]:
        path.unlink()


def load_checkpoint(state: TrainingState, fingerprint: str, path: Path) -> None:
    """Restore a state in place.

    Args:
        path: a whole checkpoint.

    Raises:
        InvalidModel: the checkpoint is of another configuration.
    """
    document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if document.get("fingerprint") != fingerprint:
        raise InvalidModel(f"{path} belongs to another configuration: remove it to start afresh")
    for name, part in state.parts().items():
        part.load_state_dict(document[name])
    state.step = document["step"]
