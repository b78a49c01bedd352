"""What is asked for: a run, a stage of one, or a study. Flows and the command line carry it out."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import ValidationError

from data.artifacts.digests import DigestMemory
from data.artifacts.records import Record, write_record
from data.artifacts.store import ArtifactStore
from data.errors import InvalidRecord, StorageError
from flows.run_config import RunConfig
from flows.run_graph import idle_options, lost_detectors, run_graph
from flows.studies import StudyConfig, study_graph
from tasks.execution.graph import Graph

logger = logging.getLogger(__name__)

_ONLY_RUN = ""
"""What a run is called that is no study's."""


@dataclass(frozen=True, slots=True)
class Request:
    """A run or a study.

    Attributes:
        what: which of the two.
        name: the preset, or the study's name.
        config: all options.
        stage: of a run, that alone is asked for; None for all.
    """

    what: Literal["run", "study"]
    name: str
    config: RunConfig | StudyConfig
    stage: str | None = None

    @classmethod
    def recorded(cls, record: Record) -> Self:
        """What a record says was asked for.

        Raises:
            InvalidRecord: its options are none of today's.
        """
        config = StudyConfig if record.what == "study" else RunConfig
        try:
            options = config.model_validate(record.options)
        except ValidationError as error:
            raise InvalidRecord(
                f"the options of the {record.what} {record.id} are of another version: {error}"
            ) from error
        return cls(record.what, record.name, options, record.stage)

    def graph(
        self, digests: DigestMemory, missing: Mapping[str, Collection[str]] = MappingProxyType({})
    ) -> Graph:
        """Build its graph.

        Args:
            missing: what `lost_detectors` found, which comparisons are made without.

        Raises:
            PipelineError: options do not go together, or what they name is not there.
        """
        if isinstance(self.config, StudyConfig):
            return study_graph(self.config, digests, missing)
        return run_graph(self.config, digests, missing.get(_ONLY_RUN, ()))

    def lost_detectors(self, digests: DigestMemory, store: ArtifactStore) -> dict[str, list[str]]:
        """By run the detectors without result that its comparison could be made without."""
        found = {name: lost_detectors(run, digests, store) for name, run in self._runs.items()}
        return {name: lost for name, lost in found.items() if lost}

    def idle_options(self) -> list[str]:
        """Options that are given and that nothing uses, each with what it needs."""
        return idle_options(self._runs.values())

    @property
    def _runs(self) -> Mapping[str, RunConfig]:
        return (
            self.config.runs if isinstance(self.config, StudyConfig) else {_ONLY_RUN: self.config}
        )

    def record(self, store: ArtifactStore, graph: Graph) -> Record | None:
        """Leave a record of it in the store; one that cannot be written to still has its hits."""
        options = self.config.model_dump(mode="json")
        steps = graph.recorded()
        try:
            return write_record(store.root, self.what, self.name, options, steps, self.stage)
        except StorageError as error:
            logger.warning("no record of this %s is left: %s", self.what, error)
            return None
