"""The flows: one for every stage, one for a whole run, one for a study.

A stage is a group of steps. Its flow takes the whole run's configuration, from which it knows the keys of its
steps and of their inputs; to rerun one stage, give it the same options as the run that made them.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from prefect import Flow, State, flow
from prefect.futures import PrefectFuture, wait
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed
from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from data.artifacts.digests import DigestMemory
from data.artifacts.fitness import require_fit
from data.artifacts.manifest import Manifest
from data.artifacts.remote import default_remote
from data.artifacts.store import ArtifactStore, default_root
from data.errors import PipelineError
from flows.request import Request
from flows.run_config import RunConfig
from flows.run_graph import STAGES, stage_steps
from flows.studies import NamedStudy, StudyConfig, by_name
from tasks.execution.graph import Graph, Step
from tasks.execution.plan import check, note_places
from tasks.execution.workshop import Workshop
from tasks.prefect_ui import StepProgress, obtain_artifact, show_lineage


class _OverPreset:
    """Makes Prefect's form give what is filled in and nothing else; the preset gives the rest."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        form = handler(schema)
        _leave_blank(form, handler)
        return form


def _leave_blank(schema: Any, handler: GetJsonSchemaHandler) -> None:
    """Take out what a form would give by itself: defaults, and switches, which have no blank."""
    if isinstance(schema, list):
        for part in schema:
            _leave_blank(part, handler)
    if not isinstance(schema, dict):
        return
    schema.pop("default", None)
    if schema.get("type") == "boolean":
        del schema["type"]
        schema["enum"] = [True, False]
    if "preset" in schema.get("properties", {}):
        schema["required"] = ["preset"]
    if "$ref" in schema:
        _leave_blank(handler.resolve_ref_schema(schema), handler)
    for part in schema.values():
        _leave_blank(part, handler)


Cores = Annotated[int, Field(ge=1)] | None
RunParameter = Annotated[RunConfig, _OverPreset()]
StudyParameter = Annotated[
    StudyConfig,
    BeforeValidator(by_name, json_schema_input_type=NamedStudy | StudyConfig),
    _OverPreset(),
]


def _stage_flow(stage: str) -> Flow[Any, Any]:
    @flow(name=stage, description=STAGES[stage], flow_run_name=f"{{config.preset}} {stage}")
    def run_stage(config: RunParameter, num_cores: Cores = None) -> State[Any]:
        return _run(Request("run", config.preset, config, stage), num_cores)

    return run_stage


ingest = _stage_flow("ingest")
train_detector = _stage_flow("train-detector")
train_scorer = _stage_flow("train-scorer")
extract_attributes = _stage_flow("extract-attributes")
train_generator = _stage_flow("train-generator")
synthesize = _stage_flow("synthesize")
retrain = _stage_flow("retrain")
evaluate = _stage_flow("evaluate")


@flow(name="end-to-end", flow_run_name="{config.preset}")
def end_to_end(config: RunParameter, num_cores: Cores = None) -> State[Any]:
    """Run every step that has no intact artifact, on all cores or some; ends in the report's state."""
    return _run(Request("run", config.preset, config), num_cores)


@flow(name="study", flow_run_name="{config.name}")
def study(config: StudyParameter, num_cores: Cores = None) -> State[Any]:
    """Run several runs, what is the same in them once, on all cores or some."""
    return _run(Request("study", config.name, config), num_cores)


def _run(request: Request, num_cores: int | None) -> State[Any]:
    """Record a graph and obtain its steps, or a stage's; an error of the user's becomes a failed state."""
    try:
        store = ArtifactStore(default_root())
        with (
            StepProgress("digest files") as progress,
            DigestMemory(store.root, progress) as digests,
        ):
            graph = request.graph(digests)
            steps = stage_steps(graph, request.stage)
            if not all(store.has(step.kind.name, step.identity.key) for step in steps):
                require_fit(store.root)
                digests.save(store.root)
            workshop = _opened_workshop(request, store, graph, num_cores)
            state = _obtain(workshop, steps)
            if state.is_failed() and request.stage is None:
                _report_with_holes(request, store, digests, num_cores)
            return state
    except PipelineError as error:
        return Failed(message=str(error), data=error)


def _opened_workshop(
    request: Request, store: ArtifactStore, graph: Graph, num_cores: int | None
) -> Workshop:
    """A workshop for a graph, of which a record is left in the store and on its mirror."""
    workshop = Workshop(store, graph, num_cores, remote=default_remote())
    if record := request.record(store, graph):
        workshop.share(record)
    return workshop


def _obtain(workshop: Workshop, steps: Sequence[Step]) -> State[Any]:
    """Obtain steps, each as soon as its inputs and cores are there; ends in the last one's state.

    A step that fails leaves those alone that do not need it. What the tables of a data set show to be
    impossible is refused as soon as they are there.
    """
    store, graph = workshop.store, workshop.graph
    note_places(store, graph)
    futures: dict[str, PrefectFuture[Manifest]] = {}
    try:
        workshop.prepare(steps)
        _submit(workshop, [step for step in steps if step.kind.name == "ingest"], futures)
        wait(list(futures.values()))
        check(store, steps)
        _submit(workshop, steps, futures)
        wait(list(futures.values()))
        workshop.share_late()
    except BaseException as error:
        if not isinstance(error, Exception):
            # A signal: it may have ended a temporary server too, which nobody is to wait for.
            get_current_settings().client.max_retries = 0
        workshop.stop()
        raise
    states = {reference: future.state for reference, future in futures.items()}
    show_lineage(workshop, states)
    return _outcome(list(states.values()))


def _report_with_holes(
    request: Request, store: ArtifactStore, digests: DigestMemory, num_cores: int | None
) -> None:
    """Evaluate with a marked hole for every training that failed, where nothing else did."""
    lost = request.lost_detectors(digests, store)
    if lost:
        graph = request.graph(digests, lost)
        workshop = _opened_workshop(request, store, graph, num_cores)
        _obtain(workshop, graph.of_stage("evaluate"))


def _submit(
    workshop: Workshop, steps: Sequence[Step], futures: dict[str, PrefectFuture[Manifest]]
) -> None:
    """Start the tasks of steps that have none yet; they wait for each other."""
    for step in steps:
        sources = (source.identity.reference for source in step.inputs.values())
        waited = [futures[item] for item in sources if item in futures]
        if step.identity.reference not in futures:
            future = obtain_artifact.submit(
                workshop, step.name, wait_for=waited, return_state=False
            )
            futures[step.identity.reference] = future


def _outcome(states: Sequence[State[Manifest]]) -> State[Any]:
    """The last state, or a failed one with all errors' messages, raised by nobody on the way."""
    errors = [
        state.result(raise_on_failure=False)
        for state in states
        if state.is_failed() or state.is_crashed()
    ]
    known = [error for error in errors if isinstance(error, PipelineError)]
    if known:
        return Failed(message="; ".join(map(str, known)), data=known[0])
    unfinished = [state for state in states if not state.is_completed()]
    return unfinished[0] if unfinished else Completed(data=states[-1].result())
