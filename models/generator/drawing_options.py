"""Options of what is drawn with a generator: images, and synthetic sets of them. Light: no torch."""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from data.artifacts.digests import DigestMemory
from data.artifacts.options import AddedLater, Options, RuntimeOnly, ShardedOptions
from data.errors import InvalidConfig
from data.layouts.options import AttributePolicy, LayoutSource, Protocol
from data.scenes.classes import THINGS
from data.vocabulary.splits import Split
from models.precision import PRECISION_HELP, Precision

if TYPE_CHECKING:
    from data.vocabulary.tables import Dataset

logger = logging.getLogger(__name__)

ImageSize = Literal["generator", "source"]
"""Of generated image files: as many pixels as the generator draws, or the source image's size."""

IMAGE_SIZE_HELP = (
    "Of the files; generator: in the source image's proportions, with no more pixels than are drawn "
    "and than it has; source: its own size, whatever is drawn."
)

Drawer = Literal["generator", "scenes"]

DRAWER_HELP = (
    "The generator, or the renderer of Scenes, which is what a perfect generator would be; for the embedded "
    "data set alone."
)

LAYOUT_SOURCE_HELP = (
    "Layouts that are drawn: of real images, jittered (things scaled and shifted), recombined (of things of "
    "several images), or aimed (likewise, more of the classes and sizes that the detector misses more often)."
)

STRENGTH_HELP = (
    "Share of the sampler's steps that are taken, from the layout's real image noised part-way; 1: all, from "
    "noise alone."
)

COMPILE_HELP = (
    "Compile the UNet's blocks, which takes a minute or more before the first batch and a C++ compiler; "
    "another result by rounding alone."
)


class SamplingConfig(Options):
    """How images are drawn from the generator."""

    sampler: Literal["pndm", "unipc", "dpm-solver++"] = "pndm"
    num_inference_steps: int = Field(50, ge=1)
    guidance_scale: float = Field(4.5, ge=0)
    mixed_precision: Precision = Field("auto", description=PRECISION_HELP)
    batch_size: Annotated[int, RuntimeOnly] = Field(
        16,
        ge=1,
        description="Layouts per batch, 64 at most in a set, fewer where memory does not suffice; another "
        "one changes images by rounding alone.",
    )
    seed: int = 0

    def num_steps(self, strength: float) -> int:
        """Number of steps that are taken at a strength in [0, 1]."""
        return int(self.num_inference_steps * strength)


class SyntheticSetOptions(ShardedOptions):
    """One synthetic data set: which layouts, at which difficulty, and how they are drawn."""

    split: Split
    policy: AttributePolicy = Field(
        "origin", description="Attributes: as measured, all easy or all hard."
    )
    class_policies: dict[str, AttributePolicy] = Field(
        default_factory=dict, description="Policies of single classes, over `policy`."
    )
    attribute_overrides: Path | None = Field(
        None, description="Parquet with object_id and attribute of single boxes."
    )
    protocol: Protocol = Protocol()
    trained_on: Annotated[Protocol, RuntimeOnly] = Field(
        Protocol(), description="The generator's rule, which is part of the generator's key."
    )
    num_layouts: int | None = Field(
        None, ge=1, description="Real ones evenly spread; null is as many as the protocol leaves."
    )
    layout_source: Annotated[LayoutSource, AddedLater] = Field(
        "real", description=LAYOUT_SOURCE_HELP
    )
    images_per_layout: int = Field(1, ge=1)
    image_size: ImageSize = Field("generator", description=IMAGE_SIZE_HELP)
    drawn_by: Annotated[Drawer, AddedLater] = Field("generator", description=DRAWER_HELP)
    strength: Annotated[float, AddedLater] = Field(1.0, gt=0, le=1, description=STRENGTH_HELP)
    sampling: SamplingConfig = SamplingConfig()
    torch_compile: Annotated[bool, RuntimeOnly] = Field(False, description=COMPILE_HELP)

    @property
    def num_gpus(self) -> int:
        """None for the renderer."""
        return super().num_gpus if self.drawn_by == "generator" else 0

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the overrides.

        Raises:
            InvalidDataset: there is no such table.
        """
        if self.attribute_overrides is None:
            return {}
        from data.attributes.overrides import read_overrides  # noqa: PLC0415  # loads what the command line need not

        read_overrides(self.attribute_overrides)
        return {"attribute_overrides": digests.file(self.attribute_overrides)}

    def check(self, dataset: "Dataset") -> None:
        """Refuse classes and objects that do not exist, and a rule that leaves no layout.

        Raises:
            InvalidConfig: a class is none of the data set's things, or these are not those of Scenes.
            InvalidDataset: no layout is left, or an overridden object is no thing of the split.
        """
        from data.attributes.overrides import check_objects, read_overrides  # noqa: PLC0415  # loads what the command line need not
        from data.layouts.layout import require_layouts  # noqa: PLC0415  # loads what the command line need not

        check_classes(self.class_policies, set(dataset.things.values()))
        if self.drawn_by == "scenes" and dataset.things != dict(enumerate(THINGS, 1)):
            raise InvalidConfig(
                f"synthesize.drawn_by=scenes draws {', '.join(THINGS)}: other data sets need the generator"
            )
        if self.attribute_overrides:
            things = dataset.object_columns(self.split, ["object_id", "is_thing"])
            known = things.filter(things["is_thing"])["object_id"].to_pylist()
            check_objects(read_overrides(self.attribute_overrides), known, self.split)
        rule = f"layouts or synthesize.{self.split}_layouts"
        require_layouts(dataset, self.split, self.protocol, rule)
        if unseen := self.unseen_things(dataset):
            logger.warning("synthesize.%s_layouts: %s", self.split, unseen)

    def num_drawn(self, dataset: "Dataset") -> int:
        """As many of each layout: of new layouts any number, of real ones those that there are."""
        from data.layouts.layout import num_layouts  # noqa: PLC0415  # loads what the command line need not

        left = num_layouts(dataset, self.split, self.protocol)
        wanted = self.num_layouts or left
        chosen = min(wanted, left) if self.layout_source == "real" else wanted
        return chosen * self.images_per_layout

    def unseen_things(self, dataset: "Dataset") -> str | None:
        """What is to be said where the generator draws things of a kind that it is not trained on."""
        from data.layouts.layout import unseen_things  # noqa: PLC0415  # loads what the command line need not

        if self.drawn_by == "scenes":
            return None
        return unseen_things(dataset, self.split, self.protocol, self.trained_on)


def check_classes(policies: Iterable[str], things: Collection[str]) -> None:
    """Refuse policies of classes that do not exist.

    Raises:
        InvalidConfig: a class is none of the data set's things.
    """
    unknown = sorted(set(policies) - set(things))
    if unknown:
        raise InvalidConfig(
            f"synthesize.class_policies names {unknown}, which are no things of the data set: "
            f"{sorted(things)}"
        )
