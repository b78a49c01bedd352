import json

import pytest
from typer.testing import CliRunner

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from flows import cost_command
from flows.command_line import app
from flows.run_config import build_run
from flows.run_graph import run_graph
from models.counts import detector_model, known_counts
from models.detector.options import DetectorConfig
from tasks.estimates.cost import ASSUMED_CORE
from tasks.execution.machine import available_cores


@pytest.fixture
def cost(tmp_path, monkeypatch):
    """Calls the command on a store, with a core as fast as is assumed; its exit status and output."""
    measured = cost_command._Measured(known_counts(), ASSUMED_CORE)
    monkeypatch.setattr(cost_command, "_measured", lambda models: measured)
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path))

    def call(*arguments):
        result = CliRunner().invoke(app, ["cost", "smoke", *arguments])
        assert result.exit_code == 0, result.exception
        return result

    return call


def test_what_steps_took_stands_beside_what_they_should(cost, publish, tmp_path, monkeypatch):
    graph = run_graph(build_run("smoke", {}), DigestMemory())
    manifest = publish(ArtifactStore(tmp_path), graph.find("ingest").identity)
    found = json.loads(cost("--against", "--json").stdout)
    rows = {row["step"]: row for row in found["steps"]}
    estimate = rows["ingest"][f"{available_cores()} cores"]
    assert rows["ingest"]["took"] == manifest.seconds == 1.0
    assert rows["ingest"]["took / estimate"] == pytest.approx(1 / estimate)
    assert rows["ingest"]["stored"] == len("content")
    assert {rows[step.name]["took"] for step in graph if step.name != "ingest"} == {None}
    assert (found["total"]["took / estimate"], found["total"]["stored"]) == (None, len("content"))
    assert "took / estimate" in cost("--against").stdout.replace("\n", " ")
    assert "steps of 10 s and more" not in cost("--against").stdout
    monkeypatch.setattr(cost_command, "_LONG", 1)
    is_close = 0.5 <= 1 / estimate <= 2
    assert f"{int(is_close)} of 1 steps of 1 s and more took" in cost("--against").stdout


def test_a_store_without_steps_of_it_has_nothing_to_be_held_against(cost, tmp_path):
    result = cost("--against", "--json")
    assert f"no step of it is in {tmp_path}" in result.stderr
    assert "took" not in json.loads(result.stdout)["total"]


def test_a_step_whose_model_is_not_counted_has_no_estimates(cost):
    other = ["--set", "train_detector.config=mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py"]
    found = json.loads(cost("--json", *other).stdout)
    rows = {row["step"]: row for row in found["steps"]}
    assert set(rows["train detector"].values()) == {"train detector", None}
    assert found["total"]["flops"] == sum(row["flops"] or 0 for row in rows.values()) > 0
    assert "train detector" in cost(*other).stdout


def test_a_model_that_cannot_be_counted_is_named(capsys, monkeypatch):
    monkeypatch.setattr(cost_command, "has_gpu", lambda: True)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    config = DetectorConfig(config="mmdet::no/such.py")
    found = cost_command._measured([detector_model(config)])
    assert found.counts == known_counts()
    assert (
        "not known, and in no sum: detector config 'mmdet::no/such.py'" in capsys.readouterr().err
    )
