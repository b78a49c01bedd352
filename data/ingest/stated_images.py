"""What COCO files state of their images, beside what EXIF says of these."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data.coco.files import CocoImage
from data.coco.records import map_spans, open_index
from data.ingest.image_checks import decode_images, name_inside
from data.ingest.options import ExifMode, SplitConfig
from data.vocabulary.images import FIRST_SIDEWAYS, orientation, shown_size
from data.workers import Workers

_NEARLY_ALL = 0.9
"""Of the stated sizes that tell, by which a data set is taken to be annotated alike."""


@dataclass(slots=True)
class StatedImages:
    """Images of a data set's files, whether they are usable or not.

    Attributes:
        count: of all.
        turned: names of the files that EXIF turns or mirrors.
        num_shown: of these whose size, which EXIF exchanges, is stated as it is shown.
        num_stored: likewise, as it is stored.
    """

    count: int = 0
    turned: list[str] = field(default_factory=list)
    num_shown: int = 0
    num_stored: int = 0

    @property
    def exif(self) -> ExifMode:
        """What their annotations are of, as far as sizes tell."""
        told = self.num_shown + self.num_stored
        return "stored" if told and self.num_stored >= _NEARLY_ALL * told else "shown"

    def add(self, item: CocoImage, folder: Path) -> None:
        """Look at an image of a folder; name and size may be anything."""
        self.count += 1
        name = name_inside(folder, item.file_name)
        turn = orientation(folder / name) if name else 1
        if turn == 1:
            return
        self.turned.append(item.file_name)
        size, shown = (item.width, item.height), shown_size(folder / str(name))
        if turn >= FIRST_SIDEWAYS and shown and size[0] != size[1]:
            self.num_shown += size == shown
            self.num_stored += size == shown[::-1]


def stated_images(splits: Iterable[SplitConfig]) -> StatedImages:
    """Look at the images of the splits' things.

    Raises:
        InvalidDataset: a file or folder is not there, or a file is not a COCO file.
    """
    found = StatedImages()
    for split in splits:
        split.require_paths()
        folder = split.images.absolute()
        for path in split.instance_files:
            for items, malformed in map_spans(
                open_index(path), "images", decode_images, Workers(None)
            ):
                found.count += len(malformed)
                for item in items:
                    found.add(item, folder)
    return found
