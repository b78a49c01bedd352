import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def environment(tmp_path):
    """A Prefect home and a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {name: value for name, value in os.environ.items() if "PREFECT" not in name} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_API_PORT": str(port),
    }


def down(environment):
    """What `scripts/down` says."""
    return subprocess.check_output([SCRIPTS / "down"], env=environment, text=True)


def test_down_ends_all_that_up_started(environment, tmp_path):
    with subprocess.Popen([SCRIPTS / "up"], env=environment) as up:
        deadline = time.monotonic() + 60
        while not (started := psutil.Process(up.pid).children(recursive=True)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "stopped" in down(environment)
        assert up.wait(10) == 143
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
    assert not list(tmp_path.glob("*.pid"))


def test_down_says_when_nothing_is_up(environment, tmp_path):
    assert "nothing is up" in down(environment)
    port = environment["PREFECT_SERVER_API_PORT"]
    (tmp_path / f"up-{port}.pid").write_text(str(os.getpid()))  # of a run that was killed
    assert "nothing is up" in down(environment)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gpu_check_runs_small_on_a_cpu(environment, tmp_path):
    """A minute where nothing else runs."""
    command = [sys.executable, SCRIPTS / "gpu-check", "--tiny", "--out", tmp_path / "found.json"]
    environment |= {"PYTHONPATH": str(SCRIPTS.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert not [row for row in rows if row["what"] == "ended early"]
    of_parts = {}
    for row in rows:
        of_parts.setdefault(row["part"], []).append(row)
    equal = {row["what"]: row["equal"] for row in of_parts.pop("equalities")}
    assert [equal[k] for k in ("fp32", "fp32, LoRA", "bf16", "fp16")] == [True, True, True, None]
    assert list(of_parts) == ["training", "sampling", "detector", "features", "smoke"]
    assert all(
        value > 0 for part in of_parts.values() for r in part for value in r["values"].values()
    )
