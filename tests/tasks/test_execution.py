import os
import subprocess
import sys
import time

import psutil
import pytest

from data.errors import ArtifactMissing, InvalidDataset, StageFailed
from data.ingest import IngestConfig, ScenesConfig
from data.store import ArtifactStore
from flows.presets import build_run
from tasks.execution import obtain, peak_memory
from tasks.stages import STAGES, identify

CONFIG = IngestConfig(scenes=ScenesConfig(num_train=4, num_val=3))


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "root")


def identity_of(config, stage="ingest"):
    configs = build_run("smoke", {}).stage_configs() | {"ingest": config}
    return identify(configs)[stage]


def ingest(store, config=CONFIG):
    reports = []
    identity = identity_of(config)
    manifest, hit = obtain(
        store, identity, config, num_workers=1, progress=lambda *report: reports.append(report)
    )
    return manifest, hit, reports


def test_a_stage_runs_in_its_own_process_and_is_a_hit_the_second_time(store):
    manifest, hit, reports = ingest(store)
    assert not hit
    assert reports[-1][:2] == (7, 7)
    assert manifest.summary["counts"]["train"]["images"] == 4
    assert manifest.seconds > 0
    assert "card.md" in manifest.files
    again, hit, _ = ingest(store)
    assert hit
    assert again == manifest


def test_a_damaged_artifact_is_made_again_with_the_same_content(store):
    manifest, _, _ = ingest(store)
    (store.path("ingest", manifest.key) / "objects.parquet").write_bytes(b"x")
    again, hit, _ = ingest(store)
    assert not hit
    assert again.files == manifest.files


def test_a_users_error_arrives_as_it_was_raised_and_leaves_no_artifact(store, tmp_path):
    split = {"instances": tmp_path / "bad.json", "images": tmp_path}
    (tmp_path / "bad.json").write_text("{")
    config = IngestConfig.model_validate({"train": split, "val": split})
    with pytest.raises(InvalidDataset, match=r"bad\.json is not a COCO file"):
        ingest(store, config)
    assert not (store.root / "ingest").exists()


def test_a_crash_names_the_log(store, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(StageFailed, match=r"exit status 1.*log\.txt"):
        ingest(store)


def test_a_stage_without_its_inputs_says_which_to_run(store):
    identity = identity_of(CONFIG, "train-detector")
    config = build_run("smoke", {}).train_detector
    with pytest.raises(ArtifactMissing, match="run the stage ingest first"):
        obtain(store, identity, config, num_workers=1, progress=lambda *report: None)


def test_a_process_ends_with_its_parent(tmp_path):
    child = "from tasks.orphans import end_with_parent as e; e(); import time; time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True)\n"
        "time.sleep(3)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True
    ) as process:
        pid = int(process.stdout.readline())
        time.sleep(1)
        process.kill()
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_late_option_changes_the_keys_of_later_stages_alone():
    before = identify(build_run("smoke", {}).stage_configs())
    changed = {"synthesize": {"sampling": {"guidance_scale": 3.0}}}
    after = identify(build_run("smoke", changed).stage_configs())
    different = {name for name in STAGES if before[name].key != after[name].key}
    assert different == {"synthesize", "retrain", "evaluate"}


def test_peak_memory_sees_an_allocation():
    with peak_memory() as peak:
        block = bytearray(os.urandom(1) * 200_000_000)
        time.sleep(1.2)
    assert peak[0] > len(block)
