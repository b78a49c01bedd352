"""Obtaining what a request asks for: checked before, by a flow, and accounted for where Prefect is gone."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

import typer
from pydantic import BaseModel

from data.artifacts.digests import DigestMemory
from data.artifacts.fitness import require_fit
from data.artifacts.remote import default_remote
from data.artifacts.store import ArtifactStore
from data.errors import ServiceUnavailable
from flows.command_options import show_digests
from flows.request import Request
from flows.run_graph import stage_steps
from tasks.estimates.forecast import Forecast, forecast
from tasks.execution.context import WARNINGS
from tasks.execution.graph import Graph, Step
from tasks.execution.plan import check, note_places, require_inputs


def checked_graph(
    store: ArtifactStore, request: Request, digests: DigestMemory
) -> tuple[Graph, Forecast]:
    """Build a graph; refuse what cannot work as far as options, files and tables tell.

    Names options without effect, downloads, and what the machine has too little of.

    Returns:
        The graph, and what is to be made of it takes.
    """
    graph = request.graph(digests)
    steps = stage_steps(graph, request.stage)
    check(store, steps)
    for line in request.idle_options():
        typer.echo(f"warning: {line}", err=True)
    missing = [step for step in steps if not store.has(step.kind.name, step.identity.key)]
    for name in dict.fromkeys(name for step in missing for name in step.options.downloads()):
        typer.echo(f"to be downloaded, where it is not cached: {name}", err=True)
    expected = forecast(graph, missing, digests)
    for line in expected.shortages(store.root):
        typer.echo(f"warning: {line}", err=True)
    return graph, expected


def carry_out(store: ArtifactStore, request: Request) -> Graph:
    """Obtain steps by a flow, or say that all are there, which needs no Prefect.

    Raises:
        ArtifactMissing: a stage needs what another one makes.
    """
    with DigestMemory(store.root, show_digests) as digests:
        graph, _ = checked_graph(store, request, digests)
        steps = stage_steps(graph, request.stage)
        there = all(store.lookup(step.identity.kind, step.identity.key) for step in steps)
        if not there:
            if default_remote() is None:
                require_inputs(store, steps)
            require_fit(store.root)
            digests.save(store.root)  # where the flow finds what was read here
    if _has_server() or not there:
        import httpx  # noqa: PLC0415  # a tenth of the time that a plan takes

        try:
            _run_flow(_flow_name(request), request.config)
        except httpx.HTTPError as error:
            _forget_events()
            _account_for(store, steps, error)
        return graph
    typer.echo("Every step is a hit; nothing to run.")
    for step in steps:
        manifest = store.read(step.identity.kind, step.identity.key)
        for text in manifest.summary.get(WARNINGS, ()) if manifest else ():
            typer.echo(f"warning: {step.name}: {text}", err=True)
    note_places(store, graph)
    request.record(store, graph)
    return graph


def _forget_events() -> None:
    """Drop what Prefect has still to tell a server that is gone: it would wait 8 s for each event."""
    from prefect.events.worker import EventsWorker  # noqa: PLC0415  # is slow to import

    EventsWorker.instance()._queue.queue.clear()  # noqa: SLF001  # nothing else empties it


def _account_for(store: ArtifactStore, steps: Sequence[Step], error: Exception) -> None:
    """Say what there is of steps of a run whose Prefect server did not come back, or answers with errors.

    Raises:
        ServiceUnavailable: some of them are missing.
    """
    there = [step for step in steps if store.has(step.kind.name, step.identity.key)]
    gone = f"the run's Prefect server is gone or fails ({error})"
    if len(there) < len(steps):
        raise ServiceUnavailable(
            f"{gone}: {len(there)} of {len(steps)} steps are in the store; the same command goes on"
        ) from error
    typer.echo(f"warning: {gone}: all {len(steps)} steps are in the store", err=True)


def _has_server() -> bool:
    """Whether a Prefect server is configured.

    Raises:
        ServiceUnavailable: it is, and does not answer.
    """
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return False
    import httpx  # noqa: PLC0415  # a tenth of the time that a plan takes

    try:
        httpx.get(f"{url}/health", timeout=10).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceUnavailable(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}): start one with `make up`, "
            "or unset the variable to run without"
        ) from error
    return True


def _flow_name(request: Request) -> str:
    """Name of a request's flow in `flows.stages`."""
    whole = "study" if request.what == "study" else "end_to_end"
    return request.stage.replace("-", "_") if request.stage else whole


def _run_flow(name: str, config: BaseModel) -> None:
    """Run a flow in this process, with a temporary Prefect server where none is configured.

    Raises:
        PipelineError: what made the run fail.
    """
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if sys.stderr.isatty():
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        # What failed is said above the bars, which write over what others write.
        logging.getLogger("prefect.task_runs").propagate = False
    logging.getLogger("prefect.task_runs").addFilter(_says_something)
    from flows import stages  # noqa: PLC0415  # Prefect reads the variables above at import

    signal.signal(signal.SIGTERM, _exit)  # by default it would leave Prefect's server behind
    state = getattr(stages, name)(config, return_state=True)
    if not state.is_completed():
        state.result()


def _says_something(record: logging.LogRecord) -> bool:
    """Leave out Prefect's errors of steps that wait for one that failed, and its traceback of none."""
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return "Finished in state NotReady(" not in record.getMessage()


def _exit(number: int, _: object) -> None:
    sys.exit(128 + number)
