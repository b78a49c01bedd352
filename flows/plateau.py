"""How long detectors must be trained: until twice as long is no better than chance."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from data.artifacts.manifest import Manifest
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing
from flows.run_config import RunConfig
from models.metrics.options import MAIN
from tasks.execution.graph import Graph


@dataclass(frozen=True, slots=True)
class Doubling:
    """What twice as long a training of the arm real has brought.

    Attributes:
        change: mean difference of mAP, paired by seed.
        standard_error: of that mean.
    """

    change: float
    standard_error: float

    @property
    def is_plateau(self) -> bool:
        """Whether the change is under one standard error."""
        return self.change < self.standard_error


def doubling(before: Sequence[float], after: Sequence[float]) -> Doubling:
    """Compare the mAP of the same seeds.

    Raises:
        ValueError: there are less than two seeds.
    """
    if len(before) < 2:
        raise ValueError("a standard error needs at least two seeds")
    differences = [late - early for early, late in zip(before, after, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Doubling(statistics.fmean(differences), error)


def real_alone(config: RunConfig, detector: str, factor: int) -> RunConfig:
    """The same run with the arm real of one detector alone, trained so many times as long."""
    given = config.retrain.detectors[detector]
    longer = given.model_copy(
        update={
            "num_iterations": given.num_iterations * factor,
            "num_epochs": given.num_epochs * factor,
        }
    )
    retrain = config.retrain.model_copy(
        update={"detector": longer, "others": {}, "arms": ("real",), "ruler": (), "contrasts": ()}
    )
    synthesize = config.synthesize.model_copy(update={"attribute_overrides": None})
    return config.model_copy(update={"retrain": retrain, "synthesize": synthesize})


def length_option(config: RunConfig, detector: str, factor: int) -> str:
    """The option that says how long a detector is trained, with a multiple of its value."""
    given = config.retrain.detectors[detector]
    name = "num_iterations" if given.num_iterations else "num_epochs"
    where = "detector" if detector == MAIN else f"others.{detector}"
    return f"retrain.{where}.{name}={getattr(given, name) * factor}"


def validated(store: ArtifactStore, graph: Graph, seeds: Sequence[int]) -> list[Manifest]:
    """Detections of the arm real in the validation images, by seed.

    Raises:
        ArtifactMissing: one is not there.
    """
    found = []
    for seed in seeds:
        identity = graph.find(f"validate real seed {seed}").identity
        manifest = store.read(identity.kind, identity.key)
        if manifest is None:
            raise ArtifactMissing(f"{identity.reference} is not there: run the command again")
        found.append(manifest)
    return found
