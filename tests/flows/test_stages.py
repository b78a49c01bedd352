import importlib
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from prefect.settings import get_current_settings
from prefect.utilities.schema_tools.validation import ValidationError, validate

from data.artifacts.digests import DigestMemory
from data.artifacts.records import read_records, write_record
from data.artifacts.remote import Remote
from data.artifacts.store import ArtifactStore
from data.errors import StorageError
from flows.presets import PRESETS
from flows.request import Request
from flows.run_config import build_run
from flows.run_graph import STAGES
from flows.stages import _obtain, _opened_workshop, end_to_end, study, train_generator
from flows.studies import read_study
from flows.study_presets import STUDIES
from tasks.execution.graph import Graph
from tasks.execution.workshop import Workshop


def deployments():
    """Flow, name and parameters of every deployment."""
    text = (Path(__file__).parents[2] / "prefect.yaml").read_text()
    for item in yaml.safe_load(text)["deployments"]:
        module, _, attribute = item["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), attribute)
        yield flow, item["name"], item["parameters"]


def validated(flow, parameters):
    """The options that a run has whose parameters have passed the server."""
    validate(parameters, flow.parameters.model_dump(), raise_on_error=True)
    return flow.validate_parameters({"num_cores": None, **parameters})["config"]


def submitted(schema, definitions, given=None):
    """What Prefect's form sends of options that nobody touches: what is given, defaults, switches."""
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    given = given if given is not None else schema.get("default")
    if "properties" in schema:
        sent = {
            name: submitted(item, definitions, (given or {}).get(name))
            for name, item in schema["properties"].items()
        }
        return {name: value for name, value in sent.items() if value is not None} or None
    return False if given is None and schema.get("type") == "boolean" else given


def test_every_preset_stage_and_study_has_a_deployment():
    assert [(flow.name, name) for flow, name, _ in deployments()] == [
        *((flow, preset) for flow in ("end-to-end", *STAGES) for preset in PRESETS),
        *(("study", name) for name in STUDIES),
    ]


def test_a_deployment_runs_what_it_is_called_by():
    for flow, name, parameters in deployments():
        expected = read_study(name) if flow is study else build_run(name, {})
        assert validated(flow, parameters) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_a_form_that_nobody_touches_gives_the_preset(preset):
    schema = end_to_end.parameters.model_dump()
    config = submitted(schema["properties"]["config"], schema["definitions"], {"preset": preset})
    assert validated(end_to_end, {"config": config}) == build_run(preset, {})


def test_options_go_over_the_preset_that_is_given_with_them():
    config = {"preset": "smoke", "train_generator": {"num_steps": 5}}
    assert validated(end_to_end, {"config": config}) == build_run("smoke", config)
    with pytest.raises(ValidationError, match="'preset' is a required property"):
        validated(end_to_end, {"config": {"train_generator": {"num_steps": 5}}})


@pytest.mark.parametrize("flow", [end_to_end, train_generator, study])
def test_no_run_is_begun_without_a_core(flow):
    config = {"name": "claims"} if flow is study else {"preset": "smoke"}
    for num_cores in (0, -1):
        with pytest.raises(ValidationError, match="num_cores"):
            validated(flow, {"config": config, "num_cores": num_cores})
        with pytest.raises(ParameterTypeError, match="num_cores"):
            flow.validate_parameters({"config": config, "num_cores": num_cores})


def test_options_go_over_those_of_a_study():
    options = {"train_scorer": {"seed": 4}}
    config = {"name": "claims", "options": options}
    assert validated(study, {"config": config}) == read_study("claims", options)


@pytest.mark.parametrize("preset", [name for name in PRESETS if not PRESETS[name]["ingest"]])
def test_a_preset_for_own_data_is_refused_without(preset, tmp_path, monkeypatch):
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path))
    state = end_to_end.fn(validated(end_to_end, {"config": {"preset": preset}}))
    assert state.is_failed()
    assert f"preset {preset} needs your data: give ingest.train and ingest.val" in state.message


def test_a_store_at_an_address_is_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETDIFFUSION_HOME", "s3://bucket/store")
    state = end_to_end.fn(validated(end_to_end, {"config": {"preset": "smoke"}}))
    assert state.is_failed()
    assert "the store is a folder on a disk" in state.message


@pytest.mark.parametrize(
    ("flow", "config", "name"),
    [
        (end_to_end, {"preset": "demo"}, "demo"),
        (train_generator, {"preset": "fine-tune"}, "fine-tune train-generator"),
        (study, {"name": "claims"}, "claims"),
    ],
)
def test_runs_are_called_by_what_they_make(flow, config, name):
    parameters = flow.validate_parameters({"config": config, "num_cores": None})
    assert flow.flow_run_name.format(**parameters) == name


def test_a_run_leaves_a_record_in_the_store_and_on_its_mirror(tmp_path, monkeypatch):
    (tmp_path / "mirror").mkdir()
    url = (tmp_path / "mirror").as_uri()
    monkeypatch.setenv("DETDIFFUSION_REMOTE", url)
    store, request = (
        ArtifactStore(tmp_path / "root"),
        Request("run", "smoke", build_run("smoke", {})),
    )
    _opened_workshop(request, store, request.graph(DigestMemory()), 1)
    (record,) = read_records(store.root)
    assert Remote(url).record(record.id) == record


def test_a_mirror_that_is_back_at_the_end_of_a_run_gets_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.execution.workshop._SECONDS_WITHOUT_REMOTE", 0.0)
    for name in ("show_lineage", "_outcome"):  # of steps that there are none of
        monkeypatch.setattr(f"flows.stages.{name}", Mock())
    remote = Remote((tmp_path / "mirror").as_uri())
    workshop = Workshop(ArtifactStore(tmp_path / "root"), Graph({}), remote=remote)
    record = write_record(workshop.store.root, "run", "smoke", {}, ())
    workshop.share(record)
    (tmp_path / "mirror").mkdir()
    _obtain(workshop, [])
    assert remote.record_ids() == [record.id]


@pytest.mark.parametrize(("error", "retries"), [(KeyboardInterrupt, 0), (StorageError, 5)])
def test_after_a_signal_no_server_is_waited_for(monkeypatch, tmp_path, error, retries):
    client, seen = get_current_settings().client, []
    monkeypatch.setattr(client, "max_retries", 5)
    workshop = Workshop(ArtifactStore(tmp_path), Graph({}))
    monkeypatch.setattr(workshop, "prepare", Mock(side_effect=error))
    monkeypatch.setattr(workshop, "stop", lambda: seen.append(client.max_retries))
    with pytest.raises(error):
        _obtain(workshop, [])
    assert seen == [retries]
