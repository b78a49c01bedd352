import io
import sys

import pytest
from prefect.logging import disable_run_logger
from rich.text import Text

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.ingest.options import IngestConfig
from models.metrics.options import FeatureOptions
from tasks import prefect_ui
from tasks.execution.graph import Node, resolve
from tasks.execution.workshop import Workshop
from tasks.prefect_ui import StepProgress, artifact_key, obtain_artifact


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    def broken(*arguments, **options):
        raise ConnectionError("the server starts again")

    monkeypatch.setattr(prefect_ui, "create_progress_artifact", broken)


def test_progress_that_cannot_be_shown_does_not_end_the_step(caplog):
    with disable_run_logger(), StepProgress("a step") as progress:
        progress(1, 2, "images")
        progress(2, 2, "images")
    assert [record.getMessage() for record in caplog.records] == [
        "a step: progress is not shown in the UI: the server starts again"
    ]


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def test_a_failed_step_is_one_line_on_the_terminal_while_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    options = FeatureOptions(extractor="random", resolution=64)
    nodes = [
        Node("ingest", "ingest", "ingest", IngestConfig()),
        Node("features", "evaluate", "image-features", options, {"ingest": "ingest"}),
    ]
    workshop = Workshop(ArtifactStore(tmp_path), resolve(nodes, DigestMemory()))
    with StepProgress("another") as another:
        another(1, 2, "images")
        state = obtain_artifact.fn(workshop, "features")
        shown = terminal.getvalue().splitlines()
        another(2, 2, "images")
    assert state.is_failed()
    (line,) = (line for line in shown if "features" in line)
    assert "error: features: 'features' needs the artifact" in line


def test_the_bar_of_a_failed_step_says_so_and_the_line_is_the_first_of_its_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with StepProgress("broken") as progress:
        progress(1, 2, "images")
        progress.fail("the end of the log:\nRuntimeError\n")
    shown = terminal.getvalue()
    assert "error: broken: the end of the log\n" in shown
    assert "RuntimeError" not in shown
    assert "1/2 -:--:-- failed" in Text.from_ansi(shown).plain


def test_names_of_steps_are_keys_that_prefect_takes():
    assert artifact_key("b: retrain real+hard seed 2") == "b-retrain-real-hard-seed-2"
