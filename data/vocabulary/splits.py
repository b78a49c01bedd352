"""The parts of a data set, and where their images lie. Light: the command line imports it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Split = Literal["train", "val", "spare", "unlabelled"]


def split_folder(split: Split) -> str:
    """Where an ingested data set has its images, if it has them itself, as Scenes do."""
    return f"scenes/{split}"


def tile_folder(split: Split) -> str:
    """Where an ingested data set has the tiles of a split, if its images were cut."""
    return f"tiles/{split}"


def note_places(folder: Path, image_folders: Mapping[Split, Path]) -> None:
    """Note beside an ingested data set where its images lie on this machine.

    Not in it: its content is the same wherever the images are.
    """
    text = json.dumps({split: str(path.absolute()) for split, path in image_folders.items()})
    path = places_file(folder)
    if path.exists() and path.read_text() == text:
        return
    if os.access(path.parent, os.W_OK):  # else nothing can be made of the images either
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)


def places_file(folder: Path) -> Path:
    """The note, beside an ingested data set."""
    return folder.with_name(f"{folder.name}.places.json")
