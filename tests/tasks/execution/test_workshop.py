"""Steps in processes of their own: hits, damage, errors, deaths."""

import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import forkserver

import psutil
import pytest
import torch

from data.artifacts.digests import DigestMemory
from data.artifacts.records import write_record
from data.artifacts.remote import Remote
from data.artifacts.store import ArtifactStore
from data.errors import ArtifactMissing, InvalidConfig, OutOfMemory, StepFailed, StorageError
from data.ingest.options import IngestConfig, ScenesConfig
from tasks import catalogue
from tasks.execution import machine
from tasks.execution import workshop as workshop_module
from tasks.execution.child import NVML_CHECK, tell_gpu
from tasks.execution.graph import Graph, Node, resolve
from tasks.execution.memory import PeakMemory
from tasks.execution.workshop import Workshop
from tasks.kind import Kind

MODULE = """
import logging, os, signal, subprocess, time
from pathlib import Path
from typing import Annotated
from data.artifacts.options import Options, RuntimeOnly
from data.errors import InvalidConfig
from tasks.pages.cards import write_card

class What(Options):
    what: str = "work"
    named: Path | None = None
    batch_size: Annotated[int, RuntimeOnly] = 12

    @property
    def num_gpus(self):
        return 2 if self.what == "both" else 1

    def foreign(self, digests):
        return {"named": digests.file(self.named)} if self.named else {}

IMPORTED = f"imported by {os.getpid()}"

def run(context):
    print("something on standard output")
    match context.options.what:
        case "error":
            raise InvalidConfig("the user did it")
        case "warn":
            logging.getLogger("library").warning("no matter of the user's")
            for number in range(30):
                package = ("data", "models", "tasks")[number % 3]
                logging.getLogger(f"{package}.some").warning("mind %d", number)
        case "edit":
            context.options.named.write_text("edited")
        case "death":
            other = subprocess.Popen(["sleep", "60"])
            (context.work / "started").write_text(str(other.pid))
            os._exit(3)
        case "exception":
            raise RuntimeError("a bug")
        case "memory":
            import torch
            raise torch.OutOfMemoryError("CUDA out of memory")
        case "sleep":
            (context.work / "started").write_text(str(os.getpid()))
            time.sleep(60)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            with subprocess.Popen(["sleep", "60"]) as other:
                (context.work / "started").write_text(f"{os.getpid()} {other.pid}")
        case "meet left" | "meet right":
            (context.root / context.options.what).touch()
            deadline = time.monotonic() + 60
            while len(list(context.root.glob("meet *"))) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    context.progress(1, 1, IMPORTED)
    write_card(context.out, "A card", context.options.what)
    return {
        "results": {"threads": int(os.environ["OMP_NUM_THREADS"])},
        "seen": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "checked by": os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"),
        "environment": sorted(os.environ),
        "parent": os.getppid(),
    }
"""


@pytest.fixture
def step(monkeypatch, tmp_path):
    """Makes steps of a kind that the test adds."""
    (tmp_path / "added_kind.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "added_kind", raising=False)
    what_options = importlib.import_module("added_kind").What
    kind = Kind(
        "added", "added_kind", what_options, {"other": "optional"}, share=1.0, preload=False
    )
    monkeypatch.setitem(catalogue.KINDS, "added", kind)

    def make(what="work"):
        nodes = [
            Node("first", "a stage", "added", what_options(what=f"{what}, first")),
            Node("second", "another", "added", what_options(what=what), {"other": "first"}),
        ]
        return resolve(nodes, DigestMemory()).find("second")

    return make


def alone(step):
    """The step without its input."""
    return resolve([Node("only", "s", "added", step.options)], DigestMemory()).find("only")


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "root")


def workshop_of(store, *steps, num_cores=1):
    """A workshop for these steps."""
    return Workshop(store, Graph({item.identity.reference: item for item in steps}), num_cores)


def obtain(store, step, num_cores=1, remote=None):
    reports = []
    workshop = Workshop(store, Graph({step.identity.reference: step}), num_cores, remote=remote)
    manifest, hit = workshop.obtain(step, lambda *report: reports.append(report))
    return manifest, hit, reports


def test_a_step_runs_in_its_own_process_and_is_a_hit_the_second_time(store, step, capfd):
    manifest, hit, reports = obtain(store, alone(step()), num_cores=3)
    assert not hit
    assert [report[:2] for report in reports] == [(1, 1)]
    assert manifest.summary["results"] == {"threads": 3}
    assert manifest.files.keys() == {"card.md"}
    assert manifest.peak_memory_bytes > 10_000_000
    assert capfd.readouterr() == ("", "")
    log = store.root / manifest.reference / "log.txt"
    assert log.read_text() == "something on standard output\n"
    again, hit, reports = obtain(store, alone(step()))
    assert (again, hit, reports) == (manifest, True, [])


def test_warnings_of_a_step_reach_its_run_and_all_are_in_the_log(store, step):
    told, only = [], alone(step("warn"))
    manifest, _ = workshop_of(store, only).obtain(only, lambda *report: None, told.append)
    assert told == [*(f"mind {number}" for number in range(20)), "more warnings are in log.txt"]
    log = (store.root / manifest.reference / "log.txt").read_text()
    assert "tasks.some WARNING mind 29" in log
    assert "no matter of the user's" in log


def test_nothing_is_filed_under_the_digest_of_a_file_that_was_changed(store, step, tmp_path):
    named = tmp_path / "config.py"

    def made_of(what):
        named.write_text("as it was")
        options = step().options.model_copy(update={"what": what, "named": named})
        return resolve([Node("only", "s", "added", options)], DigestMemory()).find("only")

    edited, editing = made_of("work"), made_of("edit")
    for one, content in ((edited, "edited"), (editing, "as it was")):
        named.write_text(content)
        with pytest.raises(InvalidConfig, match="what named names was changed since the run began"):
            obtain(store, one)
        assert not store.has("added", one.identity.key)
        assert not (store.root / ".work" / one.identity.reference / "out").exists()
    assert not obtain(store, made_of("work"))[1]


def test_a_damaged_artifact_is_made_again_with_the_same_content(store, step):
    manifest, _, _ = obtain(store, alone(step()))
    (store.root / manifest.reference / "card.md").write_bytes(b"x")
    again, hit, _ = obtain(store, alone(step()))
    assert not hit
    assert again.files == manifest.files


def test_a_users_error_arrives_as_it_was_raised_and_leaves_no_artifact(store, step):
    with pytest.raises(InvalidConfig, match=r"^the user did it \(log: /.*/log\.txt\)$"):
        obtain(store, alone(step("error")))
    assert not (store.root / "added").exists()


@pytest.mark.parametrize(
    ("what", "message"), [("death", r"exit status 3.*log\.txt"), ("exception", "a bug")]
)
def test_a_crash_names_the_log(store, step, what, message):
    with pytest.raises(StepFailed, match=rf"(?s){message}"):
        obtain(store, alone(step(what)))


def test_a_device_that_is_too_small_is_one_sentence_with_the_option_to_turn(store, step):
    with pytest.raises(
        OutOfMemory, match=r"does not suffice: batch_size=6 \(now 12\) needs less \(log: "
    ):
        obtain(store, alone(step("memory")))


def test_a_step_whose_input_is_not_there_says_which_stage_to_run(store, step):
    with pytest.raises(
        ArtifactMissing, match=r"of 'first', which is missing.*the stage a stage first"
    ):
        obtain(store, step())


def test_a_step_whose_input_was_removed_meanwhile_says_so(store, step):
    second = step()
    workshop = workshop_of(store, second.inputs["other"], second)
    first, _ = workshop.obtain(second.inputs["other"], lambda *report: None)
    (store.root / first.reference / "card.md").unlink()
    with pytest.raises(
        ArtifactMissing, match=r"'second' needs the artifact added/.*missing or damaged"
    ):
        workshop.obtain(second, lambda *report: None)


def test_a_hit_needs_no_lock_and_a_miss_without_one_is_one_clear_error(store, step):
    """As in a root that another user writes to."""
    manifest, _, _ = obtain(store, alone(step()))
    locks = store.root / ".locks"
    shutil.rmtree(locks)
    locks.write_text("no folder can be made here")
    assert obtain(store, alone(step())) == (manifest, True, [])
    with pytest.raises(
        StorageError, match=r"cannot read or write artifacts under .*/root .*\.locks"
    ):
        obtain(store, alone(step("another")))


@pytest.fixture
def remote(tmp_path):
    """A mirror in a folder."""
    (tmp_path / "mirror").mkdir()
    return Remote((tmp_path / "mirror").as_uri())


def test_what_is_made_is_pushed_and_a_root_that_lost_it_is_filled_from_the_mirror(
    store, step, remote
):
    manifest, hit, _ = obtain(store, alone(step()), remote=remote)
    assert not hit
    assert remote.has([manifest.reference])
    (store.root / manifest.reference / "card.md").write_text("damage")
    again, hit, reports = obtain(store, alone(step()), remote=remote)
    assert (again, hit, reports) == (manifest, True, [(1, 1, "files pulled")])
    shutil.rmtree(store.root)
    again, hit, reports = obtain(store, alone(step()), remote=remote)
    assert (again, hit, reports) == (manifest, True, [(1, 1, "files pulled")])
    assert store.lookup(again.kind, again.key)


def test_a_step_knows_neither_the_mirror_nor_its_credentials(store, step, monkeypatch):
    names = {"DETDIFFUSION_REMOTE", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS"}
    for name in names:
        monkeypatch.setenv(name, "secret")
    manifest, _, _ = obtain(store, alone(step()))
    assert "PATH" in manifest.summary["environment"]
    assert not names & set(manifest.summary["environment"])
    assert names <= set(os.environ)


def test_the_inputs_of_a_step_alone_come_from_the_mirror(store, step, remote):
    second = step()
    first, _, _ = obtain(store, second.inputs["other"], remote=remote)
    shutil.rmtree(store.root)
    manifest, hit, _ = obtain(store, second, remote=remote)
    assert not hit
    assert store.lookup(first.kind, first.key)
    assert manifest.inputs == {"other": first.reference}


def test_a_run_goes_on_without_a_mirror_that_does_not_answer_and_says_so_once(
    store, step, remote, tmp_path, caplog
):
    second = step()
    record = write_record(store.root, "run", "x", {}, ())
    (tmp_path / "mirror").rename(tmp_path / "gone")
    steps = {item.identity.reference: item for item in (second.inputs["other"], second)}
    workshop = Workshop(store, Graph(steps), 1, remote=remote)
    workshop.share(record)
    for item in steps.values():
        assert not workshop.obtain(item, lambda *report: None)[1]
    (warning,) = caplog.messages
    assert "`detdiffusion push` sends later" in warning
    assert "there is no such bucket or folder" in warning


def test_a_mirror_that_answers_again_is_used_again(store, step, remote, tmp_path, monkeypatch):
    monkeypatch.setattr(workshop_module, "_SECONDS_WITHOUT_REMOTE", 0.5)
    second = step()
    steps = {item.identity.reference: item for item in (second.inputs["other"], second)}
    workshop = Workshop(store, Graph(steps), 1, remote=remote)
    record = write_record(store.root, "run", "x", {}, ())
    (tmp_path / "mirror").rename(tmp_path / "gone")
    workshop.share(record)
    first, _ = workshop.obtain(second.inputs["other"], lambda *report: None)
    (tmp_path / "gone").rename(tmp_path / "mirror")
    time.sleep(0.5)
    manifest, _ = workshop.obtain(second, lambda *report: None)
    assert remote.has([manifest.reference, first.reference]) == {manifest.reference}
    assert remote.record_ids() == [record.id]


def test_a_run_that_was_stopped_leaves_off_pulling(store, step, remote):
    wanted = alone(step())
    manifest, _, _ = obtain(store, wanted, remote=remote)
    shutil.rmtree(store.root)
    workshop = Workshop(store, Graph({manifest.reference: wanted}), 1, remote=remote)
    workshop.stop()
    with pytest.raises(StepFailed, match="the run was stopped"):
        workshop.obtain(wanted, lambda *report: None)
    assert not store.has(manifest.kind, manifest.key)


def test_damage_on_the_mirror_makes_a_step_be_made_and_another_content_there_stays(
    store, step, remote, tmp_path, caplog
):
    manifest, _, _ = obtain(store, alone(step()), remote=remote)
    (file,) = (tmp_path / "mirror").rglob("card.md")
    file.write_text(file.read_text().upper())
    shutil.rmtree(store.root)
    again, hit, _ = obtain(store, alone(step()), remote=remote)
    assert not hit
    assert again.files == manifest.files
    assert "card.md is missing or not what was put there" in caplog.text
    (text,) = (tmp_path / "mirror").rglob("manifest.json")
    record = manifest.files["card.md"].model_copy(update={"sha256": "0" * 64})
    other = manifest.model_copy(update={"files": {"card.md": record}})
    text.write_text(other.model_dump_json())
    shutil.rmtree(store.root)
    assert not obtain(store, alone(step()), remote=remote)[1]
    assert "with other content" in caplog.text
    assert text.read_text() == other.model_dump_json()


@pytest.fixture
def waiting(store, step):
    """A run that waits for another one, which has made the same: lock, workshop, reports, result."""
    wanted = alone(step())
    manifest, _, _ = obtain(store, wanted)
    made = store.root / manifest.reference
    hidden = made.rename(made.with_name("hidden"))
    workshop, reports = workshop_of(store, wanted), []
    lock = store.lock(*manifest.reference.split("/"))
    with ThreadPoolExecutor(1) as pool, lock:
        result = pool.submit(workshop.obtain, wanted, lambda *report: reports.append(report))
        deadline = time.monotonic() + 20
        while not reports and time.monotonic() < deadline:
            time.sleep(0.05)
        hidden.rename(made)
        yield lock, workshop, reports, result


def test_a_run_that_waits_for_another_says_for_which_and_then_has_a_hit(waiting):
    lock, _, reports, result = waiting
    ((done, total, status),) = reports
    assert (done, total) == (0, 1)
    assert status.startswith(f"waits for process {os.getpid()} on {os.uname().nodename} since 20")
    lock.release()
    assert result.result(20)[1]
    assert len(reports) == 1


def test_a_run_that_waits_for_another_can_be_stopped(waiting):
    _, workshop, _, result = waiting
    workshop.stop()
    with pytest.raises(StepFailed, match="the run was stopped"):
        result.result(20)


def test_a_process_that_does_not_end_when_asked_is_killed_with_all_it_started(
    store, step, monkeypatch
):
    monkeypatch.setattr(workshop_module, "_SECONDS_TO_END", 0.5)
    deaf = alone(step("deaf"))
    workshop = workshop_of(store, deaf)
    started = store.root / ".work" / deaf.identity.reference / "started"
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(workshop.obtain, deaf, lambda *report: None)
        deadline = time.monotonic() + 60
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        processes = [psutil.Process(int(pid)) for pid in started.read_text().split()]
        workshop.stop()
        with pytest.raises(StepFailed, match="the run was stopped"):
            result.result(20)
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not [item for item in alive if item.status() != psutil.STATUS_ZOMBIE]


def test_a_stopped_run_ends_its_processes_and_starts_no_more(store, step):
    sleeping, other = alone(step("sleep")), alone(step())
    workshop = workshop_of(store, sleeping, other)
    errors = []

    def work():
        try:
            workshop.obtain(sleeping, lambda *report: None)
        except StepFailed as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    started = store.root / ".work" / sleeping.identity.reference / "started"
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workshop.stop()
    thread.join(20)
    assert "the run was stopped" in errors[0]
    with pytest.raises(StepFailed, match="the run was stopped"):
        workshop.obtain(other, lambda *report: None)


@pytest.fixture
def loading(step, store, monkeypatch):
    """Obtains steps that load models side by side, on GPUs and 4 cores; returns their manifests."""
    kind = replace(catalogue.KINDS["added"], preload=True)
    monkeypatch.setitem(catalogue.KINDS, "added", kind)

    def obtain_all(gpus, *words):
        steps = [alone(step(word)) for word in words]
        graph = Graph({item.identity.reference: item for item in steps})
        workshop = Workshop(store, graph, 4, gpus)
        with ThreadPoolExecutor(len(steps)) as pool:
            found = pool.map(lambda item: workshop.obtain(item, lambda *report: None), steps)
            return [manifest for manifest, _ in found]

    return obtain_all


def test_steps_that_load_models_run_side_by_side_and_each_sees_its_own_gpu(loading, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a")
    left, right = loading(["3", "GPU-a"], "meet left", "meet right")
    assert {left.summary["seen"], right.summary["seen"]} == {"3", "GPU-a"}
    for manifest in (left, right):
        assert manifest.environment["gpus"] == [manifest.summary["seen"]]
        assert manifest.environment["cores"] == 2


def test_a_step_that_waits_for_another_runs_gpu_says_so_and_ends_with_its_own_run(
    loading, step, store, monkeypatch
):
    monkeypatch.setattr(machine, "_SECONDS_BETWEEN_LOOKS", 0.05)
    waiting, reports = alone(step("one")), []
    workshop = Workshop(store, Graph({waiting.identity.reference: waiting}), 1, ["0"])

    def stop(*report):
        reports.append(report)
        workshop.stop()

    with machine.Machine(1, ["0"]).take(1.0, 0, 1), pytest.raises(StepFailed, match="was stopped"):
        workshop.obtain(waiting, stop)
    ((_, _, text),) = reports
    assert text.startswith(f"waits for a GPU of process {os.getpid()} on ")


@pytest.mark.parametrize(
    ("gpus", "word"), [(["3", "GPU-a"], "both"), (["0"], "one"), (["0"], "both")]
)
def test_a_step_that_has_all_gpus_sees_what_the_run_does(loading, monkeypatch, gpus, word):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as the user said")
    (manifest,) = loading(gpus, word)
    assert manifest.summary["seen"] == "as the user said"
    assert manifest.environment["gpus"] == gpus
    assert manifest.environment["cores"] == 4


@pytest.mark.parametrize("usable", [True, False])
def test_beside_a_gpu_steps_are_forked_if_forks_can_use_it(loading, monkeypatch, usable):
    monkeypatch.setattr(Workshop, "_forks_use_gpus", usable)
    (manifest,) = loading(["0"], "work")
    assert (manifest.summary["parent"] != os.getpid()) is usable


def test_a_fork_tells_that_it_can_use_no_gpu_where_there_is_none(step, store):
    assert workshop_of(store, alone(step()))._forks_use_gpus is torch.cuda.is_available()


def test_whether_a_fork_can_use_a_gpu_is_what_its_driver_says(monkeypatch):
    monkeypatch.setenv(NVML_CHECK, "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: NVML_CHECK not in os.environ)
    receiving, sending = multiprocessing.Pipe(duplex=False)
    tell_gpu(sending)
    assert receiving.recv() is True


def test_a_step_looks_for_a_gpu_as_it_would_by_itself(store, step, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "multiprocessing.forkserver.ensure_running", lambda: seen.update(os.environ)
    )
    kind = replace(catalogue.KINDS["added"], preload=True)
    monkeypatch.setitem(catalogue.KINDS, "added", kind)
    workshop = workshop_of(store, item := alone(step()))
    workshop.prepare([item])
    assert seen[NVML_CHECK] == "1"
    assert NVML_CHECK not in os.environ
    monkeypatch.setenv(NVML_CHECK, "1")
    monkeypatch.setattr(workshop, "_is_forked", lambda step: False)
    manifest, _ = workshop.obtain(item, lambda *report: None)  # spawned, it has this environment
    assert manifest.summary["checked by"] is None


def test_what_imports_for_steps_is_left_alone_by_an_interrupt(store, step, monkeypatch):
    server = forkserver.ForkServer()
    monkeypatch.setattr(forkserver, "ensure_running", server.ensure_running)
    kind = replace(catalogue.KINDS["added"], preload=True)
    monkeypatch.setitem(catalogue.KINDS, "added", kind)
    workshop_of(store, item := alone(step())).prepare([item])
    process = psutil.Process(server._forkserver_pid)
    process.send_signal(signal.SIGINT)  # while it starts
    time.sleep(0.5)
    assert process.status() != psutil.STATUS_ZOMBIE
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT}
    server._stop()


SCRIPT = """
import sys
from pathlib import Path

import added_kind
from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from tasks import catalogue
from tasks.execution.graph import Node, resolve
from tasks.execution.workshop import Workshop
from tasks.kind import Kind

catalogue.KINDS["added"] = Kind("added", "added_kind", added_kind.What)
words = sys.argv[2:]
nodes = [Node(word, "s", "added", added_kind.What(what=word)) for word in words]
graph = resolve(nodes, DigestMemory())
workshop = Workshop(ArtifactStore(Path(sys.argv[1])), graph, 1)
workshop.prepare(graph)
for step in graph:
    workshop.obtain(step, lambda *report: print(*report, flush=True))
"""


@pytest.fixture
def script(step, tmp_path):
    """A process that obtains steps by its fork server, as a run does."""
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))

    def start(*words, cwd=None):
        return subprocess.Popen(
            [sys.executable, tmp_path / "script.py", tmp_path / "root", *words],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def test_steps_are_forked_from_one_process_that_has_imported_their_modules(script):
    with script("one", "two") as process:
        lines = process.stdout.read().splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "imported by" in lines[0]


def test_a_file_of_a_packages_name_in_the_working_folder_is_not_imported(script, tmp_path):
    folder = tmp_path / "working"
    folder.mkdir()
    (folder / "tasks.py").write_text("raise SystemExit('the wrong tasks')")
    with script("one", cwd=folder) as process:
        assert "imported by" in process.stdout.read()


@pytest.mark.parametrize("word", ["sleep", "deaf"])
def test_a_step_and_all_it_started_end_with_the_run_however_that_ends(script, step, store, word):
    started = store.root / ".work" / alone(step(word)).identity.reference / "started"
    with script(word) as process:
        deadline = time.monotonic() + 60
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert not left(started)


def test_what_a_dead_step_has_started_ends_too(store, step):
    dead = alone(step("death"))
    with pytest.raises(StepFailed, match="exit status 3"):
        obtain(store, dead)
    assert not left(store.root / ".work" / dead.identity.reference / "started")


def left(started):
    """Of the processes that a step noted in a file those that do not end."""
    numbers = [int(pid) for pid in started.read_text().split()]
    processes = [psutil.Process(pid) for pid in numbers if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=10)
    return [item for item in alive if item.status() != psutil.STATUS_ZOMBIE]


def test_a_data_set_that_is_a_hit_notes_where_its_images_lie(store):
    config = IngestConfig(scenes=ScenesConfig(num_train=4, num_val=3))
    made = resolve([Node("ingest", "ingest", "ingest", config)], DigestMemory()).find("ingest")
    manifest, _, _ = obtain(store, made)
    assert manifest.summary["counts"]["train"]["images"] == 4
    assert not list(store.root.rglob("*.places.json"))  # Scenes are in the artifact
    folder = store.root / manifest.reference / "scenes"
    splits = {
        name: {"instances": folder / f"annotations/instances_{name}.json", "images": folder / name}
        for name in ("train", "val")
    }
    users = IngestConfig.model_validate(splits)
    step = resolve([Node("ingest", "ingest", "ingest", users)], DigestMemory()).find("ingest")
    mine, _, _ = obtain(store, step)
    places = store.root / f"{mine.reference}.places.json"
    places.unlink()
    _, hit, _ = obtain(store, step)
    assert hit
    assert places.exists()


def test_peak_memory_sees_an_allocation():
    with PeakMemory(os.getpid()) as peak:
        block = bytearray(os.urandom(1) * 200_000_000)
        time.sleep(1.2)
    assert peak.bytes > len(block)
