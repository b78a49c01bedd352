"""What is asked for: a run, a stage of one, or a study. Flows and the command line carry it out."""

from dataclasses import dataclass
from typing import Literal

from data.artifacts.digests import DigestMemory
from data.artifacts.records import write_record
from data.artifacts.store import ArtifactStore
from flows.run_config import RunConfig
from flows.run_graph import run_graph
from flows.studies import StudyConfig, study_graph
from tasks.execution.graph import Graph


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

    def graph(self, digests: DigestMemory) -> Graph:
        """Build its graph.

        Raises:
            PipelineError: options do not go together, or what they name is not there.
        """
        if isinstance(self.config, StudyConfig):
            return study_graph(self.config, digests)
        return run_graph(self.config, digests)

    def record(self, store: ArtifactStore, graph: Graph) -> None:
        """Leave a record of it in the store.

        Raises:
            StorageError: the store cannot be written to.
        """
        options = self.config.model_dump(mode="json")
        steps = graph.recorded()
        write_record(store.root, self.what, self.name, options, steps, self.stage)
