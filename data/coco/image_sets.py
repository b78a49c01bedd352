"""Images with their labels, as detectors are given them: of the real data set, or synthetic."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.vocabulary.tables import Dataset, Split


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of a COCO instances file.

    Attributes:
        instances: the file.
        images: image id and path of those that are meant, by id.
    """

    instances: Path
    images: list[tuple[int, Path]]

    @property
    def image_ids(self) -> list[int]:
        """Ids of the images."""
        return [image_id for image_id, _ in self.images]


def real_images(
    dataset: Dataset, split: Split, image_ids: Collection[int] | None = None
) -> ImageSet:
    """The images of a split, or some of them."""
    images = dataset.image_paths(split)
    if image_ids is not None:
        wanted = set(image_ids)
        images = [item for item in images if item[0] in wanted]
    return ImageSet(dataset.instances_file(split), images)


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic COCO data set: the folder that `synthesize` wrote.

    Attributes:
        folder: holds `images/`, `instances.json` and `provenance.parquet`, a row an image with its
            seed, the real image that its layout is of, and its prompt where the generator drew it.
        verified: the folder that `verify-set` wrote, whose labels and rows take the place of the set's.
    """

    folder: Path
    verified: Path | None = None

    @property
    def instances(self) -> Path:
        """COCO instances JSON."""
        return (self.verified or self.folder) / "instances.json"

    @property
    def image_folder(self) -> Path:
        """Folder that file names are relative to."""
        return self.folder / "images"

    @property
    def provenance_file(self) -> Path:
        """The table of provenance."""
        return (self.verified or self.folder) / "provenance.parquet"

    @cached_property
    def provenance(self) -> pa.Table:
        """A row an image."""
        return pq.read_table(self.provenance_file)

    @property
    def source_image_ids(self) -> list[int]:
        """Ids of the real images whose layouts it has, each once, ascending."""
        return sorted(set(self.provenance["source_image_id"].to_pylist()))

    @property
    def image_set(self) -> ImageSet:
        """All its images."""
        names = zip(
            *(self.provenance[k].to_pylist() for k in ("image_id", "file_name")), strict=True
        )
        return ImageSet(self.instances, [(key, self.image_folder / name) for key, name in names])
