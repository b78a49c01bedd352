import logging
from unittest.mock import Mock

import pytest
from httpx import ConnectError, Request, Response
from prefect.events import Event, Resource
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.errors import ServiceUnavailable
from flows import obtaining, request
from flows.obtaining import _account_for, _forget_events, _says_something, carry_out
from flows.run_config import build_run
from flows.run_graph import run_graph


@pytest.fixture
def idle_worker(monkeypatch):
    """Prefect's worker for events, not started, so that nothing takes from its queue."""
    worker = EventsWorker(NullEventsClient, ())
    monkeypatch.setattr(EventsWorker, "instance", lambda: worker)
    return worker


def test_a_run_whose_server_is_gone_says_what_is_there(tmp_path, publish, capsys):
    store = ArtifactStore(tmp_path)
    steps = list(run_graph(build_run("smoke", {}), DigestMemory()).steps.values())[:2]
    publish(store, steps[0].identity)
    with pytest.raises(
        ServiceUnavailable, match=r"gone or fails \(refused\): 1 of 2 steps are in the store"
    ):
        _account_for(store, steps, ConnectError("refused"))
    _account_for(store, steps[:1], ConnectError("refused"))
    assert capsys.readouterr().err == (
        "warning: the run's Prefect server is gone or fails (refused): all 1 steps are in the store\n"
    )


@pytest.mark.usefixtures("idle_worker")
@pytest.mark.parametrize("status", [500, 503])
def test_a_server_that_answers_with_errors_is_none(tmp_path, monkeypatch, status):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    asked = Request("POST", "http://server/api/flow_runs")
    error = PrefectHTTPStatusError(f"{status}", request=asked, response=Response(status))
    monkeypatch.setattr(obtaining, "_run_flow", Mock(side_effect=error))
    run = request.Request("run", "smoke", build_run("smoke", {}), "ingest")
    with pytest.raises(ServiceUnavailable, match=rf"\({status}\): 0 of 1 steps are in the store"):
        carry_out(ArtifactStore(tmp_path), run)


def test_events_are_not_kept_for_a_server_that_is_gone(idle_worker):
    idle_worker.send(Event(event="told", resource=Resource({"prefect.resource.id": "run"})))
    assert not idle_worker._queue.empty()
    _forget_events()
    assert idle_worker._queue.empty()


def test_of_prefects_errors_those_that_say_nothing_are_left_out():
    def record(message, exc_info=None):
        return logging.LogRecord("", logging.ERROR, "", 0, message, (), exc_info)

    assert not _says_something(record("Finished in state NotReady(\"Upstream task run 'x' …\")"))
    assert _says_something(record("Finished in state Failed('the disk is full')"))
    without = record("Task run failed", (None, None, None))
    assert _says_something(without)
    assert without.exc_info is None
    real = record("Task run failed", (OSError, OSError(), None))
    assert _says_something(real)
    assert real.exc_info[0] is OSError
