"""What is told of several processes."""

import importlib
import os
import threading
from pathlib import Path

import pytest

from data.errors import InvalidConfig, OutOfMemory, ServiceUnavailable, StorageError
from models.detector.options import DetectorTraining
from tasks.execution.context import StepContext
from tasks.execution.data_parallel import train_in_processes


@pytest.fixture
def at_one_endpoint(tmp_path, monkeypatch, free_endpoint):
    """Begins a training that no other host joins, and waits for its end; its reports go to a list."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it is set for the processes
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # likewise
    monkeypatch.setattr("models.processes._SECONDS_TO_MEET", 2)
    options = DetectorTraining(
        batch_size=6, num_processes=2, num_nodes=2, rdzv_endpoint=free_endpoint
    )

    def train(name, report):
        work = tmp_path / name
        work.mkdir()
        context = StepContext(options, {}, work, work, name, tmp_path, 2, report)
        with pytest.raises(ServiceUnavailable, match="were not all at"):
            train_in_processes(context, print, "a kind", 7, None)

    return train


@pytest.fixture
def in_two(tmp_path, monkeypatch, forked_ranks):
    """Has two processes call a function of the script; returns what was reported."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr("models.processes._MAX_RESTARTS", 0)
    script, reports = importlib.import_module("data_parallel_script"), []
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    context = StepContext(
        DetectorTraining(batch_size=6, num_processes=2), {}, tmp_path / "out", tmp_path / "work",
        "key", tmp_path, 2, lambda *report: reports.append(report),
    )  # fmt: skip

    def call(name):
        train_in_processes(context, getattr(script, name), "a kind", 2, "a plan")
        return reports

    return call


def test_the_first_process_reports_for_all(in_two, tmp_path):
    assert in_two("work")[-1] == (2, 2, "by 0")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0", "1"]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("be_wrong", InvalidConfig, "the user did it"),
        ("fill_the_disk", StorageError, "no space left under"),
        ("need_memory", OutOfMemory, r"batch_size=3 \(now 6\) needs less"),
    ],
)
def test_what_is_wrong_for_the_user_is_the_steps_error(in_two, what, error, message):
    with pytest.raises(error, match=message):
        in_two(what)


def test_a_run_after_an_error_begins_anew(in_two):
    with pytest.raises(InvalidConfig, match="the user did it"):
        in_two("be_wrong")
    assert in_two("work")[-1] == (2, 2, "by 0")


def test_a_training_waits_for_another_that_has_its_endpoint(at_one_endpoint):
    begun, reports = threading.Event(), []
    other = threading.Thread(target=at_one_endpoint, args=("other", lambda *_: begun.set()))
    other.start()
    assert begun.wait(20)
    at_one_endpoint("one", lambda *report: reports.append((*report, other.is_alive())))
    other.join(20)
    waits, invites = reports
    assert waits[:2] == (0, 7)
    assert waits[2].startswith("waits for rdzv_endpoint 127.0.0.1:")
    assert f" of process {os.getpid()} on " in waits[2]
    assert invites[2].startswith("waiting for hosts: ")
    assert [waits[3], invites[3]] == [True, False]
