"""Options of what generated images and retrained detectors are measured by. Light: no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.artifacts.digests import DigestMemory
from data.artifacts.options import Options
from data.errors import InvalidModel
from data.vocabulary.tables import Split


class FeatureOptions(Options):
    """Which images an extractor looks at."""

    extractor: Literal["detector", "inception"] = "inception"
    inception_weights: Path | None = Field(
        None, description="InceptionV3 weights file, where nothing may be downloaded."
    )
    resolution: int = Field(ge=1, description="Images are squashed to this square, pixels.")
    split: Split = "val"

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the weights.

        Raises:
            InvalidModel: there is no such file.
        """
        if self.inception_weights is None:
            return {}
        if not self.inception_weights.is_file():
            raise InvalidModel(f"evaluate.inception_weights {self.inception_weights}: no such file")
        return {"inception_weights": digests.file(self.inception_weights)}

    def downloads(self) -> tuple[str, ...]:
        """InceptionV3, unless it is given."""
        if self.extractor == "detector" or self.inception_weights:
            return ()
        return ("InceptionV3's weights, by torch-fidelity, if they are not in torch's cache",)


class MeasureOptions(Options):
    """When an object counts as found."""

    recall_iou_threshold: float = Field(0.5, gt=0, lt=1)
    recall_score_threshold: float = Field(0.3, ge=0, lt=1)
