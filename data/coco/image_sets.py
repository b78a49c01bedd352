"""Images with their labels, as detectors are given them: of the real data set, or synthetic."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.vocabulary.splits import Split
from data.vocabulary.tables import Dataset


@dataclass(frozen=True, slots=True)
class WholeImages:
    """Images that others are tiles of, on which detections in the tiles are judged.

    Attributes:
        instances: COCO instances file.
        tiles: table with schema `data.vocabulary.tables.TILES`, of these images alone.
    """

    instances: Path
    tiles: pa.Table

    def __str__(self) -> str:
        """How many they are, for pages."""
        num_images = len(self.tiles["source_image_id"].unique())
        return f"{num_images} whole images, {self.tiles.num_rows / num_images:.3g} tiles each"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of a COCO instances file.

    Attributes:
        instances: the file.
        images: image id and path of those that are meant, by id.
        whole: what they are all tiles of, if they are.
    """

    instances: Path
    images: list[tuple[int, Path]]
    whole: WholeImages | None = None

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
    whole = whole_images(dataset) if split == "val" and image_ids is None else None
    return ImageSet(dataset.instances_file(split), images, whole)


def whole_images(dataset: Dataset) -> WholeImages | None:
    """The validation images where the data set's are tiles of them."""
    if dataset.tiles is None:
        return None
    of_split = dataset.tiles.filter(pc.field("split") == "val")
    return WholeImages(dataset.whole_instances_file, of_split)


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic COCO data set: the folder that `synthesize` wrote.

    Attributes:
        folder: holds `images/`, `instances.json` and `provenance.parquet`, a row an image with its
            seed, the real image that its layout is of (of a recombined one the stuff), its prompt where
            the generator drew it, and of aimed layouts the share of real things like its own that are hard.
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

    @cached_property
    def source_of(self) -> dict[int, int]:
        """Of each image's id that of the real image whose layout it has."""
        columns = (self.provenance[name].to_pylist() for name in ("image_id", "source_image_id"))
        return dict(zip(*columns, strict=True))

    @property
    def source_image_ids(self) -> list[int]:
        """Ids of the real images whose layouts it has, each once, ascending."""
        return sorted(set(self.source_of.values()))

    @property
    def image_set(self) -> ImageSet:
        """All its images."""
        names = zip(
            *(self.provenance[k].to_pylist() for k in ("image_id", "file_name")), strict=True
        )
        return ImageSet(self.instances, [(key, self.image_folder / name) for key, name in names])


def images_of(artifacts: Mapping[str, Path], split: Split) -> ImageSet:
    """The images of a synthetic set, or of a split of a data set.

    Args:
        artifacts: the set as `set`, or else the data set as `ingest`.
        split: of the data set.
    """
    if "set" in artifacts:
        return SyntheticSet(artifacts["set"]).image_set
    return real_images(Dataset(artifacts["ingest"]), split)
