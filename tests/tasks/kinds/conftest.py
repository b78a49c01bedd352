import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.execution.context import StepContext

ROOT = Path(__file__).parents[3]


@pytest.fixture
def by_command(monkeypatch):
    """Starts another host of a training as people do; returns what waits for its exit status."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    started = []

    def start(kind, work):
        started.append(subprocess.Popen([sys.executable, "-m", kind, work]))
        return lambda: started[-1].wait(60)

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def by_fork(monkeypatch, fork_server):
    """Starts it, in less time, in a process that has imported the kind."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "models")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    take_part, started = importlib.import_module("other_host").take_part, []

    def start(kind, work):
        process = fork_server.Process(target=take_part, args=(kind, str(work)))
        process.start()
        started.append(process)

        def status():
            process.join(60)
            return process.exitcode

        return status

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def run_on_two_hosts(tmp_path, monkeypatch, forked_ranks, free_endpoint):
    """Runs a kind of training on this host and another, one process each; returns its artifact."""

    def run(kind, options, inputs, start):
        changes = {"num_nodes": 2, "num_processes": 2, "rdzv_endpoint": free_endpoint}
        options = options.model_copy(update=changes)
        out, work = tmp_path / "out of two", tmp_path / "work of two"
        out.mkdir()
        work.mkdir()
        monkeypatch.setattr("models.processes._SECONDS_TO_MEET", 120)
        statuses = []

        def invite(done, total, status):
            if status.startswith("waiting for hosts: "):
                statuses.append(start(kind.__name__, work))

        kind.run(StepContext(options, inputs, out, work, "key", tmp_path, 1, invite))
        assert [status() for status in statuses] == [0]
        return out

    return run
