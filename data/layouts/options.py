"""Options of layouts: which are used, and where they are from. Light: the command line imports it."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from data.option_errors import HintingModel, OneOf

AttributePolicy = Literal["origin", "easy", "hard"]
POLICIES: tuple[AttributePolicy, ...] = get_args(AttributePolicy)

LayoutSource = Literal["real", "jittered", "recombined", "aimed"]
"""Layouts as images have them; with their things moved; of things of several images, as they are or where the
detector is weak."""

ProtocolName = Literal["lama-val", "synthetic-train"]


class Protocol(HintingModel):
    """A rule for choosing layouts; crowds and the stuff class `other` are never part of one."""

    min_area_fraction: float = Field(
        0.0, ge=0, lt=1, description="Boxes stay whose w·h / (W·H) is above this."
    )
    min_objects: int = Field(
        1, ge=0, description="Images stay that have at least so many objects left."
    )
    max_objects: int = Field(0, ge=0, description="And at most so many; 0: no limit.")
    counted: Literal["things", "things and stuff"] = Field(
        "things", description="What counts as objects."
    )

    @model_validator(mode="after")
    def _some_number_is_left(self) -> Self:
        if 0 < self.max_objects < self.min_objects:
            raise ValueError(
                f"no image has at least {self.min_objects} and at most {self.max_objects} objects: "
                "change min_objects or max_objects"
            )
        return self


Rule = Annotated[ProtocolName | Protocol, OneOf]
"""A protocol by its name, or one of the user's."""

RuleOrRuns = Annotated[ProtocolName | Protocol | Literal["run"], OneOf]
"""The same, or the run's."""

EVERYTHING = Protocol(min_objects=0)
"""All images, and all objects that may be part of a layout."""

PROTOCOLS: dict[ProtocolName, Protocol] = {
    # LAMA and LostGAN, by way of GeoDiffusion's evaluation on val2017.
    "lama-val": Protocol(
        min_area_fraction=0.02,
        min_objects=3,
        max_objects=8,
        counted="things and stuff",
    ),
    # DetDiffusion, section 4.3: labels of train2017 with 3 to 8 objects.
    "synthetic-train": Protocol(min_objects=3, max_objects=8),
}

_PUBLISHED: dict[ProtocolName, str] = {
    "lama-val": "val2017: 3,097 images",
    "synthetic-train": "train2017: 47,429 images, 210,893 objects",
}


def protocol_of(rule: RuleOrRuns, of_run: Rule) -> Protocol:
    """The protocol that is meant."""
    meant = of_run if rule == "run" else rule
    return meant if isinstance(meant, Protocol) else PROTOCOLS[meant]


def published_counts(protocol: Protocol) -> str | None:
    """Counts of COCO that were published for a protocol."""
    return next((_PUBLISHED[name] for name, item in PROTOCOLS.items() if item == protocol), None)
