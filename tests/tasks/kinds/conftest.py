import os
import socket
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest

from data.progress import silent
from tasks.execution.context import StepContext

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run_on_two_hosts(tmp_path, monkeypatch, fork_server):
    """Runs a kind of training on two hosts, one process each; returns its artifact."""

    def run(kind, options, inputs):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        changes = {"num_nodes": 2, "num_processes": 2, "rdzv_endpoint": endpoint}
        options = options.model_copy(update=changes)
        out, work = tmp_path / "out of two", tmp_path / "work of two"
        out.mkdir()
        work.mkdir()
        step = StepContext(options, inputs, out, work, "key", tmp_path, 1, silent)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        monkeypatch.setenv("PYTHONPATH", path)
        first = fork_server.Process(target=kind.run, args=(step,))
        first.start()
        try:
            while first.is_alive() and not (work / "context.json").exists():
                sleep(0.1)
            subprocess.run([sys.executable, "-m", kind.__name__, work], check=True)
            first.join(60)
            assert first.exitcode == 0
        finally:
            first.terminate()
        return out

    return run
