import logging

import pytest
from httpx import ConnectError
from prefect.events import Event, Resource
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.errors import ServiceUnavailable
from flows.obtaining import _account_for, _forget_events, _says_something
from flows.run_config import build_run
from flows.run_graph import run_graph


def test_a_run_whose_server_is_gone_says_what_is_there(tmp_path, publish, capsys):
    store = ArtifactStore(tmp_path)
    steps = list(run_graph(build_run("smoke", {}), DigestMemory()).steps.values())[:2]
    publish(store, steps[0].identity)
    with pytest.raises(
        ServiceUnavailable, match=r"gone \(refused\): 1 of 2 steps are in the store"
    ):
        _account_for(store, steps, ConnectError("refused"))
    _account_for(store, steps[:1], ConnectError("refused"))
    assert capsys.readouterr().err == (
        "warning: the run's Prefect server is gone (refused): all 1 steps are in the store\n"
    )


def test_events_are_not_kept_for_a_server_that_is_gone(monkeypatch):
    worker = EventsWorker(NullEventsClient, ())  # not started, so that nothing takes from its queue
    monkeypatch.setattr(EventsWorker, "instance", lambda: worker)
    worker.send(Event(event="told", resource=Resource({"prefect.resource.id": "run"})))
    assert not worker._queue.empty()
    _forget_events()
    assert worker._queue.empty()


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
