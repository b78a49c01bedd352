"""Options of detectors and detections that are given, and of detecting. Light: no torch, no MMDetection."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from data.artifacts.digests import DigestMemory, combined_digest
from data.artifacts.options import AddedLater, Options, RuntimeOnly, ShardedOptions
from data.errors import InvalidDataset, InvalidModel
from data.option_errors import OneOf
from data.vocabulary.splits import Split
from models.detector.options import Fold, config_digest

DETECTOR_FILES = ("config.py", "detector.json", "model.safetensors")
"""What a trained detector's folder holds."""

DARKNET_FILES = ("model.cfg", "model.weights", "detector.json")
"""What the folder of a detector in Darknet's format holds."""

_CLASS_NAMES = "The detector's name of a class to the data set's, where they differ."


def detector_files(folder: Path) -> tuple[str, ...]:
    """Names of the files that a detector's folder holds, by the kind that it is of."""
    return DARKNET_FILES if (folder / DARKNET_FILES[0]).is_file() else DETECTOR_FILES


class CheckpointConfig(Options):
    """Somebody's MMDetection detector."""

    config: str = Field(description="Config packaged with MMDetection (`mmdet::…`), or its path.")
    checkpoint: Path = Field(description="Its .pth, or safetensors with the same names.")
    classes: tuple[str, ...] | None = Field(
        None,
        description="Names in label order; null: as the checkpoint says, else the data set's things.",
    )
    class_names: Annotated[dict[str, str], AddedLater] = Field(
        default_factory=dict, description=_CLASS_NAMES
    )

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digests of the config and the checkpoint.

        Raises:
            InvalidConfig: there is no such config.
            InvalidModel: there is no such checkpoint.
        """
        if not self.checkpoint.is_file():
            raise InvalidModel(f"detector checkpoint {self.checkpoint}: no such file")
        return {
            "config": config_digest(self.config, digests),
            "checkpoint": digests.file(self.checkpoint),
        }


class DarknetConfig(Options):
    """Somebody's detector in Darknet's format, such as YOLOv4; needs the extra `darknet`."""

    cfg: Path = Field(description="Its .cfg, with [yolo] layers.")
    weights: Path
    names: Path = Field(description="Class names in label order, one a line, such as coco.names.")
    nms_iou_threshold: float = Field(
        0.45,
        ge=0,
        le=1,
        description="Of two boxes of a class that overlap more, the weaker is dropped.",
    )
    class_names: dict[str, str] = Field(default_factory=dict, description=_CLASS_NAMES)

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digests of the files.

        Raises:
            InvalidModel: one is missing.
        """
        paths = {"cfg": self.cfg, "weights": self.weights, "names": self.names}
        for name, path in paths.items():
            if not path.is_file():
                raise InvalidModel(f"detector {name} {path}: no such file")
        return {name: digests.file(path) for name, path in paths.items()}


class DetectorFolder(Options):
    """A detector's folder as `train-detector` or `import-detector` writes it."""

    folder: Path

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the folder's files.

        Raises:
            InvalidModel: there is no such folder, or one is missing.
        """
        if not self.folder.is_dir():
            raise InvalidModel(f"detector folder {self.folder}: no such folder")
        paths = [self.folder / name for name in detector_files(self.folder)]
        for path in paths:
            if not path.is_file():
                raise InvalidModel(f"detector folder {self.folder}: it has no {path.name}")
        return {"folder": combined_digest(digests.files(paths))}


class DetectorSource(Options):
    """Where a detector of the user's comes from."""

    source: CheckpointConfig | DarknetConfig | DetectorFolder
    all_classes: Annotated[bool, AddedLater] = Field(
        False, description="Refuse one that does not know all things of the data set."
    )

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Those of the source."""
        return {f"source.{name}": text for name, text in self.source.foreign(digests).items()}


class DetectionOptions(ShardedOptions):
    """Which images a detector looks at, and what is kept of what it finds."""

    split: Split = "val"
    fold: Fold | None = Field(None, description="These images of the split alone.")
    score_threshold: float = Field(0.0, ge=0, lt=1, description="Weaker detections are not kept.")
    batch_size: Annotated[int, RuntimeOnly] = Field(32, ge=1)


class DetectionsFile(Options):
    """A COCO results file, a JSON list of {image_id, category_id, bbox, score}, for one split."""

    path: Path
    split: Split

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the file.

        Raises:
            InvalidDataset: there is no such file.
        """
        if not self.path.is_file():
            raise InvalidDataset(f"detections {self.path}: no such file")
        return {"path": digests.file(self.path)}


class ResultsConfig(Options):
    """COCO results files, JSON lists of {image_id, category_id, bbox, score}."""

    train: Path
    val: Path


class ScoringConfig(Options):
    """Where the detections for the perception-aware attributes come from."""

    score_threshold: float = Field(
        0.05, ge=0, lt=1, description="Weaker detections of training images are not kept."
    )
    detector: Annotated[Path | CheckpointConfig | DarknetConfig, OneOf] | None = Field(
        None,
        description="A detector's folder as train-detector writes it, an MMDetection config with a "
        "checkpoint, or Darknet's cfg and weights; null: the one that train-detector trains.",
    )
    results: ResultsConfig | None = Field(
        None, description="Detections of any other framework, instead of inference."
    )
    num_folds: int = Field(
        0,
        ge=0,
        description="From 2: so many detectors of train-detector's options, each trained without the "
        "fold of training images that it scores. 0: training images are scored by the detector.",
    )
    batch_size: Annotated[int, RuntimeOnly] = Field(32, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.num_folds == 1:
            raise ValueError(
                "one fold leaves nothing to train on: give scoring.num_folds from 2 on"
            )
        given = [self.detector is not None, self.results is not None, self.num_folds > 1]
        if sum(given) > 1:
            raise ValueError("give one of scoring.detector, scoring.results and scoring.num_folds")
        return self
