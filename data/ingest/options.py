"""Options of `ingest`: where a data set lies, and how it is read."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from data.artifacts.digests import DigestMemory
from data.artifacts.options import AddedLater, Options
from data.errors import InvalidDataset
from data.option_errors import OneOf
from data.scenes.classes import THINGS
from data.vocabulary.splits import Split, note_places

MaskMode = Literal["rle", "none"]
ExifMode = Literal["shown", "stored"]


class SplitConfig(Options):
    """Where one split of a COCO-format data set lies."""

    instances: Annotated[Path | tuple[Path, ...], OneOf] = Field(
        description="COCO instances JSON, one or several."
    )
    images: Path = Field(description="Folder that file names are relative to.")
    stuff: Annotated[Path | tuple[Path, ...], OneOf] | None = Field(
        None, description="COCO stuff JSON, one or several; optional."
    )
    panoptic: Path | None = Field(
        None,
        description="COCO panoptic JSON whose stuff is read; its PNGs lie beside it, in a folder of "
        "its name. Optional.",
    )

    @property
    def instance_files(self) -> tuple[Path, ...]:
        """Files of things."""
        return self.instances if isinstance(self.instances, tuple) else (self.instances,)

    @property
    def stuff_files(self) -> tuple[Path, ...]:
        """Files of stuff."""
        return self.stuff if isinstance(self.stuff, tuple) else tuple(filter(None, [self.stuff]))

    @property
    def files(self) -> tuple[Path, ...]:
        """All JSON files."""
        panoptic = (self.panoptic,) if self.panoptic else ()
        return (*self.instance_files, *self.stuff_files, *panoptic)

    @property
    def png_folder(self) -> Path:
        """Folder of the panoptic file's PNGs, beside it and of its name, as COCO has them.

        That of the images where there is no such file.
        """
        return self.panoptic.with_suffix("") if self.panoptic else self.images

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders of images."""
        return tuple(dict.fromkeys([self.images, self.png_folder]))

    def require_paths(self) -> None:
        """Raise InvalidDataset where a file or folder is not there."""
        for path in self.files:
            if not path.is_file():
                raise InvalidDataset(
                    f"{path} does not exist or is no file: give the path of a COCO JSON"
                )
        for folder in self.folders:
            if not folder.is_dir():
                raise InvalidDataset(
                    f"{folder} does not exist or is no folder: images are looked for there"
                )

    def digest(self, digests: DigestMemory) -> str:
        """Digest of the content of the split.

        Raises:
            InvalidDataset: a path does not exist or cannot be read, or a file is not a COCO file.
        """
        from data.ingest.source import source_digest  # noqa: PLC0415  # loads what Scenes need not

        self.require_paths()
        try:
            return source_digest(
                self.instance_files,
                self.stuff_files,
                self.images,
                self.panoptic,
                self.png_folder,
                digests,
            )
        except OSError as error:
            raise InvalidDataset(f"{error.filename} cannot be read: {error.strerror}") from error


IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What names of image files end in, where nothing else says what is an image."""


class UnlabelledConfig(Options):
    """Images without labels: those of the user's folders, or Scenes where there are none."""

    folders: tuple[Path, ...] = ()
    num_scenes: int = Field(0, ge=0)
    size: int = Field(64, ge=32, description="Image side of Scenes, pixels.")
    seed: int = 0

    @property
    def root(self) -> Path:
        """The folder that all folders are in, which file names are relative to."""
        return Path(os.path.commonpath(map(os.path.abspath, self.folders)))

    def file_names(self) -> list[str]:
        """Names of the image files in the folders and in theirs; hidden ones are none.

        Raises:
            InvalidDataset: a folder does not exist, or has no image file.
        """
        names, root = set[str](), self.root
        for folder in self.folders:
            if not folder.is_dir():
                raise InvalidDataset(
                    f"{folder} does not exist or is no folder: correct ingest.unlabelled"
                )
            found = {os.path.relpath(path, root) for path in _image_files(folder)}
            if not found:
                raise InvalidDataset(
                    f"{folder} has no image file ({', '.join(sorted(IMAGE_SUFFIXES))}): correct "
                    "ingest.unlabelled"
                )
            names |= found
        return sorted(names)

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the user's images.

        Raises:
            InvalidDataset: as `file_names`.
        """
        if not self.folders:
            return {}
        from data.ingest.source import images_digest  # noqa: PLC0415  # loads what Scenes need not

        return {"folders": images_digest(self.root, self.file_names(), digests)}

    def note_places(self, artifact: Path) -> None:
        """Note where the user's images lie."""
        if self.folders:
            note_places(artifact, {"unlabelled": self.root})


def _image_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.is_dir():
            yield path


class ScenesConfig(Options):
    """The embedded data set."""

    num_train: int = Field(3500, ge=1)
    num_val: int = Field(500, ge=1)
    num_spare: Annotated[int, AddedLater] = Field(0, ge=0, description="See ingest.spare.")
    num_unlabelled: Annotated[int, AddedLater] = Field(
        0, ge=0, description="See ingest.unlabelled."
    )
    size: int = Field(64, ge=32, description="Image side, pixels.")
    seed: int = 0


class TileConfig(Options):
    """Tiles that large images are cut into, for objects that are small beside their image."""

    size: int = Field(ge=16, description="Side of a tile, pixels of the image.")
    overlap: float = Field(
        0.25, ge=0, lt=1, description="Of neighbouring tiles, share of the side."
    )
    min_visible: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of an object's mask, or box, that a tile must show to have it.",
    )


class IngestConfig(Options):
    """A COCO-format data set, or the embedded Scenes where no split is given."""

    train: SplitConfig | None = None
    val: SplitConfig | None = None
    spare: Annotated[SplitConfig | None, AddedLater] = Field(
        None,
        description="More labelled images, which only the ruler and the arm more-real of `retrain` use.",
    )
    unlabelled: Annotated[tuple[Path, ...], AddedLater] = Field(
        (),
        description="Folders of images without labels, for the arm self-training and pretrain_generator: "
        "all in them, and in the folders in them. Images of ingest.val have no place there.",
    )
    scenes: ScenesConfig = ScenesConfig()
    policy: Literal["report", "strict"] = Field(
        "report",
        description="Leave broken records out and account for them, or refuse the data set.",
    )
    masks: MaskMode = Field(
        "rle", description="Encode masks, or go without them, which is several times faster."
    )
    check_images: bool = Field(
        True, description="Look at every image file; off: believe what the JSON says of them."
    )
    exif: Annotated[ExifMode, AddedLater] = Field(
        "shown",
        description="What sizes, boxes and masks are of where EXIF turns or mirrors an image: the image as "
        "it is shown, or as it is stored. Those of stored images are turned with them.",
    )
    tile: Annotated[TileConfig | None, AddedLater] = Field(
        None, description="Cut the images into overlapping tiles, which take their place."
    )
    group_by: Annotated[str | None, AddedLater] = Field(
        None,
        description="Expression for file names: images that it (its first group, if it has one) matches "
        "alike, such as frames of a film, are in one fold, in one part of the data, and one draw of what "
        "intervals are over.",
    )

    @field_validator("group_by")
    @classmethod
    def _is_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is no expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _is_looked_at(self) -> Self:
        if self.exif == "stored" and not self.check_images:
            raise ValueError(
                "exif stored needs check_images, for the image files say how they turn"
            )
        return self

    @property
    def splits(self) -> dict[Split, SplitConfig]:
        """The user's splits; none for Scenes.

        Raises:
            InvalidDataset: only one of train and val is given.
        """
        if self.train is None and self.val is None and self.spare is None:
            return {}
        if self.train is None or self.val is None:
            missing = "train" if self.train is None else "val"
            raise InvalidDataset(
                f"ingest.{missing} is missing: give ingest.{missing}.instances and "
                f"ingest.{missing}.images"
            )
        spare: dict[Split, SplitConfig] = {"spare": self.spare} if self.spare else {}
        return {"train": self.train, "val": self.val, **spare}

    @property
    def unlabelled_images(self) -> UnlabelledConfig | None:
        """The images without labels, which are a data set of their own; None where there are none."""
        if self.unlabelled:
            return UnlabelledConfig(folders=self.unlabelled)
        if self.splits or not self.scenes.num_unlabelled:
            return None
        scenes = self.scenes
        return UnlabelledConfig(
            num_scenes=scenes.num_unlabelled, size=scenes.size, seed=scenes.seed
        )

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digests of the user's splits."""
        return {name: split.digest(digests) for name, split in self.splits.items()}

    def thing_names(self, digests: DigestMemory) -> set[str]:
        """Names of the classes of things, as far as the files tell."""
        if not self.splits:
            return set(THINGS)
        from data.ingest.source import category_names  # noqa: PLC0415  # loads what Scenes need not

        files = [path for split in self.splits.values() for path in split.instance_files]
        return category_names(files, digests)

    def note_places(self, artifact: Path) -> None:
        """Note where the user's images lie."""
        if self.splits:
            note_places(artifact, {name: split.images for name, split in self.splits.items()})
