"""The smoke preset through a real Prefect server."""

import asyncio

import pytest

from tasks.stages import STAGES

STAGE_NAMES = tuple(STAGES)

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # Prefect's server libraries warn a lot
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Artifact root, with a Prefect server behind it."""
    from prefect.testing.utilities import prefect_test_harness

    folder = tmp_path_factory.mktemp("root")
    with pytest.MonkeyPatch.context() as patch, prefect_test_harness(server_startup_timeout=120):
        patch.setenv("DETDIFFUSION_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def manifest(root):
    """Manifest of the evaluation at the end of a cold run."""
    from flows.presets import build_run
    from flows.stages import end_to_end

    return end_to_end(build_run("smoke", {}))


def state_names(root):
    """Names of the states of all task runs that got an artifact, oldest first."""
    from prefect.client.orchestration import get_client

    async def read():
        async with get_client() as client:
            runs = await client.read_task_runs()
        return [run.state.name for run in runs if run.name in STAGE_NAMES]

    return asyncio.run(read())


def test_a_cold_run_makes_every_artifact_and_the_report(root, manifest):
    from data.store import ArtifactStore
    from flows.command_line import flat_results

    store = ArtifactStore(root)
    assert all(store.latest(name) for name in STAGE_NAMES)
    results = flat_results(store, manifest)
    expected = {
        "detector_map50_real", "score_ap50_real", "score_ap50_origin", "score_ap50_easy",
        "score_ap50_hard", "recall_easy", "recall_origin", "recall_hard", "map_real",
        "map_real_plus_synthetic", "frechet_origin", "frechet_floor", "seconds_total",
        "peak_memory_gb",
    }  # fmt: skip
    assert expected <= results.keys()
    assert results["peak_memory_gb"] < 6
    page = (store.path("evaluate", manifest.key) / "report.html").read_text()
    assert page.count("data:image/png") == 2


def test_the_synthetic_set_is_a_coco_data_set(root, manifest):
    from PIL import Image
    from pycocotools.coco import COCO

    folder = root / "synthesize" / manifest.inputs["synthesize"] / "hard"
    coco = COCO(str(folder / "instances.json"))
    assert len(coco.imgs) == 8
    assert {item["attribute"] for item in coco.anns.values()} == {"hard"}
    for image in coco.imgs.values():
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (64, 64)


def test_a_warm_run_is_all_hits_and_says_so(root, manifest):
    from flows.presets import build_run
    from flows.stages import end_to_end

    before = len(state_names(root))
    assert end_to_end(build_run("smoke", {})) == manifest
    names = state_names(root)
    assert len(names) == before + len(STAGE_NAMES)
    assert names.count("Cached") == len(STAGE_NAMES)


def test_cards_are_artifacts_of_the_ui(root, manifest):
    from prefect.client.orchestration import get_client

    async def read():
        async with get_client() as client:
            return await client.read_latest_artifacts()

    artifacts = {item.key: item for item in asyncio.run(read())}
    assert set(STAGE_NAMES) <= artifacts.keys()
    assert "data:image/png" in artifacts["synthesize"].data
    assert all(len(item.data) < 300_000 for item in artifacts.values() if item.type == "markdown")


def test_a_damaged_late_artifact_alone_is_made_again(root, manifest):
    from flows.presets import build_run
    from flows.stages import end_to_end

    folder = root / "evaluate" / manifest.key
    (folder / "report.html").unlink()
    again = end_to_end(build_run("smoke", {}))
    assert again.created_at > manifest.created_at
    assert (folder / "report.html").exists()
    assert state_names(root).count("Completed") == len(STAGE_NAMES) + 1


def test_a_single_stage_can_be_run_and_misses_its_inputs_by_name(
    root, manifest, tmp_path, monkeypatch
):
    from flows.presets import build_run
    from flows.stages import extract_attributes

    assert extract_attributes(build_run("smoke", {})).stage == "extract-attributes"
    monkeypatch.setenv("DETDIFFUSION_HOME", str(tmp_path))
    state = extract_attributes(build_run("smoke", {}), return_state=True)
    assert state.is_failed()
    assert "run the stage ingest first" in state.message


def test_the_deployments_of_prefect_yaml_exist():
    import importlib
    from pathlib import Path

    import yaml

    text = (Path(__file__).parents[2] / "prefect.yaml").read_text()
    names = []
    for item in yaml.safe_load(text)["deployments"]:
        module, _, attribute = item["entrypoint"].rpartition(".")
        names.append(getattr(importlib.import_module(module), attribute).name)
    assert sorted(names) == sorted(["end-to-end", *STAGE_NAMES])
