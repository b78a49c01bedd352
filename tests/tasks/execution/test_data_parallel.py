"""What is told of several processes."""

import importlib
from pathlib import Path

import pytest

from data.errors import InvalidConfig, OutOfMemory, StorageError
from models.detector.options import DetectorTraining
from tasks.execution.context import StepContext
from tasks.execution.data_parallel import train_in_processes


@pytest.fixture
def in_two(tmp_path, monkeypatch):
    """Has two processes call a function of the script; returns what was reported."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # it is set for the processes
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # likewise
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
    with pytest.raises(error, match=message):  # of a run after it too
        in_two(what)
