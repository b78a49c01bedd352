"""Options of the perception-aware attributes and of pseudo-labels. Light: the command line imports it."""

from typing import Literal

from pydantic import Field

from data.artifacts.options import Options

ATTRIBUTES_NAME = "attributes.parquet"
"""The table of attributes in an artifact."""


class AttributeConfig(Options):
    """Thresholds of the perception-aware attribute; defaults are our decision, see docs/method.md."""

    iou_threshold: float = Field(0.5, ge=0, lt=1, description="β: an easy box overlaps by more.")
    score_threshold: float = Field(0.3, ge=0, lt=1, description="γ: kept detections score more.")
    class_aware: bool = Field(False, description="Count only detections of the box's own class.")
    matching: Literal["many-to-one", "hungarian", "greedy"] = Field(
        "many-to-one",
        description="A detection may serve many boxes (paper); or one box each, by the highest sum "
        "of IoUs or greedily by score.",
    )
    stuff: Literal["unlabelled", "literal"] = Field(
        "unlabelled",
        description="Stuff has no attribute, or is scored like things: hard unless the detector "
        "knows stuff.",
    )


class PseudoLabelConfig(Options):
    """Which detections become labels of images that have none."""

    score_threshold: float = Field(
        0.5, ge=0, lt=1, description="Detections that score more are kept as things."
    )


class VerificationOptions(Options):
    """Who looks for the objects of a synthetic training set, and what becomes of those not found."""

    by: Literal["scorer", "detector"] = Field(
        "scorer",
        description="The run's independent judge; or the detector that gave the attributes, which calls "
        "hard what it does not find.",
    )
    action: Literal["keep", "drop-object", "drop-image", "refine"] = Field(
        "drop-object",
        description="Objects that are not found stay; or are left out; or are left out with their image; "
        "or they stay, and those found get the boxes they were found with.",
    )
    iou_threshold: float = Field(0.5, ge=0, lt=1, description="A found object overlaps by more.")
    score_threshold: float = Field(0.3, ge=0, lt=1, description="Detections that count score more.")
