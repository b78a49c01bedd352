"""Training in processes of its own: killed ones, and several at once."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from data.errors import ServiceUnavailable
from models import processes
from models.processes import Hosts, run_distributed
from models.training.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def start(root, fork_server, scripts_of):
    """Starts a training in a process of its own."""
    scripts_of("training")
    from training_script import main

    def start(name, death="-", host="first", **options):
        process = fork_server.Process(target=main, args=(root / name, death, options, host))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def train(start):
    """Runs a training in a process of its own; returns its exit status."""

    def run(*names, **options):
        process = start(*names, **options)
        process.join(240)
        status = process.exitcode
        process.kill()  # where it hangs
        return status

    return run


@pytest.fixture(scope="module")
def whole(root, train):
    """Folder of a run in one process that nothing disturbed."""
    assert train("whole") == 0
    return root / "whole"


def free_endpoint():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def losses(folder):
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


def same_weights(folder, other):
    for part in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        first, second = (load_file(item / "generator" / part) for item in (folder, other))
        if any((first[name] != second[name]).any() for name in first):
            return False
    return True


def test_a_run_killed_at_several_moments_ends_bit_identical(root, train, whole):
    for death in ("step:1", "write:2", "step:5", "write:1"):
        assert train("killed", death) == -signal.SIGKILL
    assert train("killed") == 0
    assert same_weights(root / "killed", whole)
    assert losses(root / "killed") == losses(whole)
    steps = [row["step"] for row in read_metrics(root / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, 9))


def test_two_processes_have_the_losses_of_one(root, train, whole):
    options = {"num_processes": 2, "gradient_accumulation_steps": 2}
    assert train("two", **options) == 0
    assert losses(root / "two") == pytest.approx(losses(whole), rel=1e-4)


def test_after_the_death_of_a_process_all_go_on_from_the_newest_checkpoint(root, train, whole):
    assert train("bereaved", "rank:5", num_processes=2) == 0
    assert (root / "bereaved" / "died-rank-5").exists()
    assert losses(root / "bereaved") == pytest.approx(losses(whole), rel=1e-4)
    assert (root / "bereaved" / "generator").is_dir()


def test_hosts_wait_for_one_that_was_lost_and_go_on_with_it(root, start, train, whole):
    options = {
        "num_processes": 2,
        "num_nodes": 2,
        "rdzv_endpoint": free_endpoint(),
        "num_workers": 0,
    }
    first = start("hosts", **options)
    try:
        assert train("hosts", "host:5", "other", **options) == -signal.SIGKILL
        assert train("hosts", "-", "other", **options) == 0
        first.join(60)
        assert first.exitcode == 0
    finally:
        first.kill()
    assert losses(root / "hosts") == pytest.approx(losses(whole), rel=1e-4)
    assert (root / "hosts" / "generator").is_dir()


@pytest.mark.parametrize(
    ("is_first", "message"),
    [(False, "no connection within 1 s"), (True, "were not all at .* within 1 s")],
)
def test_hosts_that_do_not_find_each_other_say_so_in_time(monkeypatch, is_first, message):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(processes, "_SECONDS_TO_CONNECT", 1)
    monkeypatch.setattr(processes, "_SECONDS_TO_MEET", 1)
    hosts = Hosts(2, free_endpoint(), "run", is_first)
    with pytest.raises(ServiceUnavailable, match=message):
        run_distributed(print, num_processes=1, hosts=hosts)


def test_a_port_that_something_else_has_is_said_at_once(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        message = f"rdzv_endpoint {endpoint}: something else has this port here"
        with pytest.raises(ServiceUnavailable, match=message):
            run_distributed(print, num_processes=1, hosts=Hosts(2, endpoint, "run", is_first=True))


def test_processes_share_the_threads(tmp_path):
    """With more threads than cores they would wait for each other in busy loops."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from pathlib import Path\n"
        "from models.processes import run_distributed\n"
        "def work(folder):\n"
        "    Path(folder, os.environ['RANK']).write_text(str(torch.get_num_threads()))\n"
        "if __name__ == '__main__':\n"
        "    run_distributed(work, sys.argv[1], num_processes=2)\n"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, script, tmp_path], env=environment, check=True, timeout=120)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["1", "1"]
