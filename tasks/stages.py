"""The stages: their order, their options, and the identity of what they would make."""

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from data.errors import InvalidConfig
from data.ingest import IngestConfig, source_digest
from data.store import StageIdentity, contents_digest, digest_file, keyed_options
from models.config import (
    DETECTOR_FILES,
    AttributeStageConfig,
    CheckpointConfig,
    DetectorConfig,
    EvaluationConfig,
    GeneratorConfig,
    ResultsConfig,
    RetrainConfig,
    ScoringConfig,
    SynthesisConfig,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: as in the command line, the deployments and the artifact root.
        version: bumped by hand whenever the stage's code changes its output.
        config: class of its options.
        inputs: names of the stages whose artifacts it reads.
        step: module whose `run` does the work.
    """

    name: str
    version: int
    config: type[BaseModel]
    inputs: tuple[str, ...]
    step: str

    @property
    def option(self) -> str:
        """Name of its options in a run's configuration."""
        return self.name.replace("-", "_")


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("ingest", 4, IngestConfig, (), "tasks.ingest"),
        Stage("train-detector", 1, DetectorConfig, ("ingest",), "tasks.train_detector"),
        Stage("train-scorer", 1, DetectorConfig, ("ingest",), "tasks.train_detector"),
        Stage(
            "extract-attributes",
            2,
            AttributeStageConfig,
            ("ingest", "train-detector"),
            "tasks.extract_attributes",
        ),
        Stage(
            "train-generator",
            3,
            GeneratorConfig,
            ("ingest", "train-detector", "extract-attributes"),
            "tasks.train_generator",
        ),
        Stage(
            "synthesize",
            3,
            SynthesisConfig,
            ("ingest", "extract-attributes", "train-generator"),
            "tasks.synthesize",
        ),
        Stage("retrain", 1, RetrainConfig, ("ingest", "synthesize"), "tasks.retrain"),
        Stage(
            "evaluate",
            1,
            EvaluationConfig,
            (
                "ingest",
                "train-detector",
                "train-scorer",
                "extract-attributes",
                "train-generator",
                "synthesize",
                "retrain",
            ),
            "tasks.evaluate",
        ),
    )
}
"""Every stage, after the stages it reads from."""


def foreign_files(config: BaseModel) -> dict[str, str]:
    """Digests of what an option names outside of the artifact root."""
    match config:
        case AttributeStageConfig(scoring=scoring):
            return {
                f"scoring.{name}": _digest(path)
                for name, path in _scoring_files(scoring).items()
                if path.is_file()
            }
        case IngestConfig():
            return {"source": source_digest(config)}
        case DetectorConfig(config=name) | RetrainConfig(detector=DetectorConfig(config=name)) if (
            Path(name).is_file()
        ):
            return {"detector_config": _digest(Path(name))}
        case GeneratorConfig(base_model=str(name)) if Path(name).is_dir():
            return {"base_model": contents_digest(Path(name))}
        case (
            SynthesisConfig(attribute_overrides=Path() as path)
            | EvaluationConfig(inception_weights=Path() as path)
        ) if path.is_file():
            return {"file": digest_file(path).sha256}
    return {}


def _digest(path: Path) -> str:
    """SHA-256 of a file; of an MMEngine config together with all that it inherits from."""
    files = [path.resolve()]
    for file in files:  # which grows meanwhile
        bases = [(file.parent / name).resolve() for name in _bases(file)]
        files += [base for base in bases if base.is_file() and base not in files]
    return hashlib.sha256("".join(digest_file(file).sha256 for file in files).encode()).hexdigest()


def _bases(file: Path) -> list[str]:
    """What a config names as `_base_`."""
    if file.suffix != ".py":
        return []
    try:
        for node in ast.parse(file.read_bytes()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
                value = ast.literal_eval(node.value)
                return [value] if isinstance(value, str) else list(value)
    except (SyntaxError, ValueError, TypeError):
        pass  # only MMEngine can say what is wrong with it
    return []


def _scoring_files(scoring: ScoringConfig) -> dict[str, Path]:
    match scoring:
        case ScoringConfig(detector=CheckpointConfig(config=config, checkpoint=checkpoint)):
            return {"detector.config": Path(config), "detector.checkpoint": checkpoint}
        case ScoringConfig(detector=Path() as folder):
            return {f"detector/{name}": folder / name for name in DETECTOR_FILES}
        case ScoringConfig(results=ResultsConfig(train=train, val=val)):
            return {"results.train": train, "results.val": val}
    return {}


def identify(configs: Mapping[str, BaseModel]) -> dict[str, StageIdentity]:
    """Compute the identity of every stage's artifact for a run.

    Args:
        configs: stage name to its options.

    Raises:
        InvalidDataset: a path of the data set does not exist.
        InvalidConfig: a stage has no options.
    """
    identities: dict[str, StageIdentity] = {}
    for stage in STAGES.values():
        config = configs.get(stage.name)
        if not isinstance(config, stage.config):
            raise InvalidConfig(f"stage {stage.name} needs options of type {stage.config.__name__}")
        inputs = {name: identities[name].key for name in stage.inputs}
        inputs |= foreign_files(config)
        identities[stage.name] = StageIdentity(
            stage.name, stage.version, keyed_options(config), inputs
        )
    return identities
