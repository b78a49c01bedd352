import io
import re
import sys
from types import SimpleNamespace

import networkx as nx
import pytest
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES
from prefect.states import Completed, Crashed, Failed, Pending
from rich.text import Text

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.ingest.options import IngestConfig
from flows.run_config import build_run
from flows.run_graph import run_graph
from flows.studies import read_study, study_graph
from models.metrics.options import FeatureOptions
from tasks import prefect_ui
from tasks.execution.graph import Node, resolve
from tasks.execution.workshop import Workshop
from tasks.prefect_ui import StepProgress, artifact_key, lineage, obtain_artifact

FEATURES = FeatureOptions(extractor="random", resolution=64)


@pytest.fixture(autouse=True)
def tries(monkeypatch):
    """There is no server: how often it was tried to show something, with how many retries."""
    tries = []

    def broken(*arguments, **options):
        tries.append(PREFECT_CLIENT_MAX_RETRIES.value())
        raise ConnectionError("the server starts again")

    monkeypatch.setattr(prefect_ui, "_server", prefect_ui._Server())
    for name in ("create_progress_artifact", "create_markdown_artifact", "create_table_artifact"):
        monkeypatch.setattr(prefect_ui, name, broken)
    return tries


def test_a_server_that_is_gone_ends_no_step_and_is_left_alone_for_a_while(caplog, tries):
    with disable_run_logger(), StepProgress("a step") as progress:
        progress(1, 2, "images")
        progress(2, 2, "images")
    assert [record.getMessage() for record in caplog.records] == [
        "the run goes on, but the Prefect UI does not show it: the server starts again"
    ]
    assert tries == [prefect_ui._NUM_RETRIES]


def test_a_server_that_comes_back_is_shown_things_again(monkeypatch, caplog):
    monkeypatch.setattr(prefect_ui, "_SECONDS_WITHOUT_SERVER", 0)
    shown = []
    with disable_run_logger(), StepProgress("a step") as progress:
        progress(1, 3, "images")
        progress(2, 3, "images")
        monkeypatch.setattr(
            prefect_ui, "create_progress_artifact", lambda percent, **_: shown.append(percent)
        )
        progress(3, 3, "images")
    assert shown == [100]
    assert len(caplog.records) == 1


def test_a_step_whose_card_cannot_be_shown_is_there(tmp_path, publish, tries):
    store = ArtifactStore(tmp_path)
    graph = resolve([Node("ingest", "ingest", "ingest", IngestConfig())], DigestMemory())
    manifest = publish(store, graph.find("ingest").identity)
    state = obtain_artifact.fn(Workshop(store, graph), "ingest")
    assert (state.name, state.data) == ("Cached", manifest)
    assert tries


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self):
        return True


def test_a_failed_step_is_one_line_on_the_terminal_while_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    nodes = [
        Node("ingest", "ingest", "ingest", IngestConfig()),
        Node("features", "evaluate", "image-features", FEATURES, {"ingest": "ingest"}),
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


def test_beside_a_long_name_count_time_and_status_are_whole(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(prefect_ui._bars.console, "width", 80)
    with StepProgress("generator: validate self-training, equal exposure seed 0") as progress:
        progress(364, 1200, "loss 0.811, 12 images/s")
    shown = Text.from_ansi(terminal.getvalue()).plain
    (line,) = {line for line in shown.splitlines() if line.startswith("generator: valida")}
    assert line.endswith(" 364/1200 -:--:-- loss 0.811, 12 images/s")
    assert "exposure seed 0 " in line


@pytest.mark.parametrize("on_terminal", [True, False])
def test_what_an_artifact_warns_of_is_told_by_every_run_that_has_it(
    tmp_path, publish, monkeypatch, on_terminal
):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal() if on_terminal else io.StringIO())
    logged = []
    logger = SimpleNamespace(warning=lambda text, *names: logged.append(text % names))
    monkeypatch.setattr(prefect_ui, "get_run_logger", lambda: logger)
    store = ArtifactStore(tmp_path)
    graph = resolve([Node("ingest", "ingest", "ingest", IngestConfig())], DigestMemory())
    publish(store, graph.find("ingest").identity, summary={"warnings": ["5 × no file", "odd"]})
    assert obtain_artifact.fn(Workshop(store, graph), "ingest").name == "Cached"
    assert logged == ["ingest: 5 × no file", "ingest: odd"]
    shown = ["warning: ingest: 5 × no file", "warning: ingest: odd"]
    assert terminal.getvalue().splitlines() == (shown if on_terminal else [])


def test_names_of_steps_are_keys_that_prefect_takes():
    assert artifact_key("b: retrain real+hard seed 2") == "b-retrain-real-hard-seed-2"


def test_a_card_is_shown_with_the_beginning_of_its_key(tmp_path, monkeypatch, publish):
    graph = resolve([Node("a step", "ingest", "ingest", IngestConfig())], DigestMemory())
    store, step = ArtifactStore(tmp_path), graph.find("a step")
    manifest = publish(store, step.identity)
    (store.root / manifest.reference / "card.md").write_text("# Title")
    shown = {}

    def show(content, key, description):
        shown[key] = (content, description)

    monkeypatch.setattr(prefect_ui, "create_markdown_artifact", show)
    monkeypatch.setattr(prefect_ui, "create_table_artifact", show)
    with disable_run_logger():
        obtain_artifact.fn(Workshop(store, graph), "a step")
    assert shown["a-step"] == ("# Title", f"ingest/{manifest.key[:8]}")
    facts = {row["name"]: row["value"] for row in shown["a-step-facts"][0]}
    assert facts["artifact"] == str(store.root / manifest.reference)


def test_the_lineage_draws_what_became_of_each_step_and_what_it_is_made_from(tmp_path):
    nodes = [
        Node("ingest", "ingest", "ingest", IngestConfig()),
        Node('the "floor"', "evaluate", "image-features", FEATURES, {"ingest": "ingest"}),
    ]
    graph = resolve(nodes, DigestMemory())
    ingest, features = graph.steps
    drawing, _, table = lineage(graph, {ingest: "hit", features: "made"}).partition("\n```\n\n")
    assert drawing.splitlines()[:9] == [
        "```mermaid", "flowchart LR",
        "subgraph ingest", '  0["ingest"]:::hit', "end",
        "subgraph evaluate", '  1["the #quot;floor#quot;"]:::made', "end",
        "0 --> 1",
    ]  # fmt: skip
    assert f"| ingest | hit | {ingest} |" in table
    assert "-->" not in lineage(graph, {features: "made"})  # of a stage alone


def test_the_lineage_of_the_largest_study_fits_into_the_ui():
    graph = study_graph(read_study("pays"), DigestMemory(), {})
    text = lineage(graph, dict.fromkeys(graph.steps, "made"))
    assert len(text) < 300_000
    assert text.count("-->") < 500  # Mermaid draws no more


def test_no_arrow_of_the_lineage_goes_where_others_lead():
    graph = run_graph(build_run("smoke", {}), DigestMemory())
    arrows = re.findall(r"(\d+) --> (\d+)", lineage(graph, dict.fromkeys(graph.steps, "made")))
    sources = {
        (reference, item.identity.reference)
        for reference, step in graph.steps.items()
        for item in step.inputs.values()
    }
    whole = nx.DiGraph((source, reference) for reference, source in sources)
    references = list(graph.steps)
    drawn = {(references[int(source)], references[int(number)]) for source, number in arrows}
    assert drawn == set(nx.transitive_reduction(whole).edges)


def test_results_of_tasks_are_told_apart():
    states = [Completed(name="Cached"), Completed(), Failed(), Crashed(), Pending(name="NotReady")]
    assert [prefect_ui._result(state) for state in states] == [
        "hit", "made", "failed", "failed", "left",
    ]  # fmt: skip
