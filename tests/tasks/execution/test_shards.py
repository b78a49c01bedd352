"""Work in shards: equal bytes by any executor, deaths, what is wrong; on Ray where it is installed."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from functools import partial
from importlib import metadata

import psutil
import pytest

from data.artifacts.digests import DigestMemory
from data.artifacts.options import Execution, ShardedOptions
from data.errors import InvalidConfig, ServiceUnavailable, StepFailed
from flows.run_config import build_run
from flows.run_graph import run_graph
from tasks.execution.context import StepContext
from tasks.execution.executors import enough_gpus
from tasks.execution.shards import _made, _Shard, run_shards

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # Ray leaves sockets and processes to the collector

MODULE = """
import logging, os, signal, time

def prepare(folder, what):
    (folder / f"begun {os.getpid()}").touch()
    if what == "warnings":
        logging.getLogger("data.some").warning("one mind")

    def make(items, shard):
        (shard / "first").write_text(str(items[0]))
        match what:
            case "death" if 5 in items:
                os.kill(os.getpid(), signal.SIGKILL)
            case "one death" if 5 in items and not (folder / "death").exists():
                (folder / "death").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "exception" if 5 in items:
                raise RuntimeError("5 is too much")
            case "full disk" if 5 in items:
                raise OSError(28, "No space left on device")
            case "no connection" if 5 in items:
                raise OSError(110, "Connection timed out")
            case "one I/O error" if 5 in items and not (folder / "error").exists():
                (folder / "error").touch()
                raise OSError(5, "Input/output error")
            case "threads":
                import torch
                (shard / "threads").write_text(str(torch.get_num_threads()))
            case "slow":
                time.sleep(0.7)
            case "warnings":
                logging.getLogger("library").warning("no matter of the user's")
                logging.getLogger("models.some").warning("mind %d", items[0] // 8)
                while len(list(folder.glob("begun *"))) < 2:
                    time.sleep(0.1)
            case "again" | "otherwise":
                target = shard.with_name(shard.name.partition(".")[0])
                target.mkdir()
                (target / "first").write_text(str(items[0]))
                (target / "all").write_text(what if what == "otherwise" else str(items))
        (shard / "all").write_text(str(items))

    return make
"""

SCRIPT = """
import sys
from functools import partial
from pathlib import Path

import added_work
from data.artifacts.options import Execution, ShardedOptions
from tasks.execution.context import StepContext
from tasks.execution.shards import run_shards

if __name__ == "__main__":
    work = Path(sys.argv[1])
    options = ShardedOptions(execution=Execution(executor=sys.argv[2], num_workers=2))
    report = lambda *report: print(*report, flush=True)
    context = StepContext(options, {}, work, work, "key", work, 1, report)
    prepare = partial(added_work.prepare, work / "notes", "slow")
    run_shards(context, prepare, list(range(23)), 4, name=str, unit="numbers")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder; workers find a module there."""
    (tmp_path / "added_work.py").write_text(MODULE)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "notes").mkdir()
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "added_work", raising=False)
    return tmp_path


def context_of(work, execution, reports=None):
    report = (lambda *report: None) if reports is None else (lambda *item: reports.append(item))
    options = ShardedOptions(execution=execution)
    return StepContext(options, {}, work, work, "key", work, 1, report)


def made(work, execution, what="", reports=None):
    """The shards of 23 numbers: files' names and contents, in order."""
    prepare = partial(importlib.import_module("added_work").prepare, work / "notes", what)
    context = context_of(work, execution, reports)
    folders = run_shards(context, prepare, list(range(23)), 4, name=str, unit="numbers")
    return [
        {path.name: path.read_text() for path in sorted(folder.iterdir())} for folder in folders
    ]


def begun(work):
    """How many workers there were."""
    return len(list((work / "notes").glob("begun *")))


def tries(work, shard):
    """How often a shard was begun in vain."""
    return len(list((work / "shards").glob(f"{shard}.*.tmp")))


WHOLE = [
    {"all": str(list(range(start, min(start + 4, 23)))), "first": str(start)}
    for start in range(0, 23, 4)
]
EXECUTORS = ["local", "ray"]


@pytest.mark.parametrize(("executor", "num_workers"), [("local", 1), ("local", 4), ("ray", 2)])
def test_shards_are_the_same_by_any_number_of_workers(work, execution, executor, num_workers):
    reports, options = [], execution(executor, num_workers)
    assert made(work, options, reports=reports) == WHOLE
    workers = begun(work)
    assert 1 <= workers <= num_workers
    begins = "numbers" if executor == "local" else f"numbers, connects to {options.address}"
    assert reports[0] == (0, 23, begins)
    assert reports[-1] == (23, 23, "numbers")
    assert len(reports) == 7
    assert made(work, options) == WHOLE
    assert begun(work) == workers  # there was nothing to do


def test_shards_can_be_read_by_whoever_can_read_other_folders(work, execution):
    made(work, execution("local", 1))
    shards = work / "shards"
    assert {path.stat().st_mode for path in shards.iterdir()} == {shards.stat().st_mode}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_workers_warn_of_is_told_once(work, execution, executor, caplog):
    assert made(work, execution(executor, 2), "warnings") == WHOLE
    assert begun(work) == 2
    assert sorted(caplog.messages) == ["mind 0", "mind 1", "mind 2", "one mind"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_worker_that_dies_is_replaced(work, execution, executor):
    assert made(work, execution(executor, 2), "one death") == WHOLE
    assert (work / "notes" / "death").exists()
    assert tries(work, "000000004") == 1  # beside the one that came to its end


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("what", "why"), [("death", "the death of its worker"), ("exception", "5 is too much")]
)
def test_a_shard_that_fails_thrice_is_named(work, execution, executor, what, why):
    with pytest.raises(StepFailed, match=rf"3 times, at last with .*{why}.*: 4, 5, 6, 7$"):
        made(work, execution(executor, 2), what)
    assert tries(work, "000000004") == 3
    others = {path.name for path in (work / "shards").iterdir() if path.suffix != ".tmp"}
    assert "000000000" in others
    assert "000000004" not in others


class Scripted:
    """An executor whose workers load, one after the other, as it is told, and make shards."""

    num_workers = 1

    def __init__(self, loads):
        self._loads = iter(loads)

    def new_worker(self, prepare):
        return self

    def begin(self):
        return self._outcome(next(self._loads))

    def do(self, shard):
        shard.folder.mkdir()
        return self._outcome(False)  # it dies when its shard is there

    def end(self):
        pass

    def _outcome(self, is_well):
        future = Future()
        future.set_result([]) if is_well else future.set_exception(BrokenExecutor("dead"))
        return future


def made_by(loads, work):
    missing = [_Shard([number], work / str(number)) for number in range(3)]
    return [shard.items for shard in _made(Scripted(loads), None, missing, str)]


def test_a_cluster_without_room_is_told_until_workers_begin(work, monkeypatch):
    begun = Future()

    class Busy(Scripted):
        def begin(self):
            return begun

        def do(self, shard):
            shard.folder.mkdir()
            return self._outcome(True)

    @contextmanager
    def busy(*arguments, **options):
        yield Busy([])

    class Reports(list):
        def append(self, report):
            super().append(report)
            if "waiting" in report[2]:
                begun.set_result([])

    monkeypatch.setattr("tasks.execution.shards._PATIENCE", 0.1)
    monkeypatch.setattr("tasks.execution.shards._executor", busy)
    reports = Reports()
    made(work, Execution(), reports=reports)
    assert [status for _, _, status in reports] == [
        "numbers",
        "numbers, waiting for workers to find room and load",
        *["numbers"] * 6,
    ]


def test_workers_that_are_lost_before_they_begin_end_a_step_if_it_is_three_in_a_row(work):
    assert made_by([0, 0, 1, 0, 0, 1, 0, 0, 1, 1], work) == [[0], [1], [2]]
    with pytest.raises(StepFailed, match=r"3 workers failed before their first images: .*dead"):
        made_by([1, 0, 0, 0], work / "notes")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_full_disk_is_told_at_once(work, num_workers):
    with pytest.raises(OSError, match="No space left"):
        made(work, Execution(num_workers=num_workers), "full disk")
    assert tries(work, "000000004") == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_a_disk_or_a_network_may_pass(work, num_workers):
    assert made(work, Execution(num_workers=num_workers), "one I/O error") == WHOLE
    assert tries(work, "000000004") == 1
    shutil.rmtree(work / "shards")
    with pytest.raises(TimeoutError, match="Connection timed out"):
        made(work, Execution(num_workers=num_workers), "no connection")
    assert tries(work, "000000004") == 3


@pytest.mark.parametrize(("executor", "num_workers"), [("local", 1), ("local", 2), ("ray", 2)])
def test_torch_has_one_thread_wherever_it_works(
    work, execution, executor, num_workers, monkeypatch
):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(3)
    shards = made(work, execution(executor, num_workers), "threads")
    assert {shard["threads"] for shard in shards} == {"1"}


def test_a_shard_that_is_made_twice_must_have_the_same_bytes(work):
    assert made(work, Execution(), "again") == WHOLE
    shutil.rmtree(work / "shards")
    with pytest.raises(StepFailed, match="000000000 was made twice, and all came out with other"):
        made(work, Execution(), "otherwise")


def test_a_shard_that_was_begun_is_made_anew(work):
    half = work / "shards" / "000000008.half.tmp"
    half.mkdir(parents=True)
    (half / "all").write_text("half")
    assert made(work, Execution()) == WHOLE
    assert not half.exists()


@contextmanager
def driver(work, executor):
    """A process that makes shards, slowly; and all processes that it has started when two are there."""
    environment = {**os.environ, "HOME": str(work)}
    environment.pop("RAY_AUTH_MODE", None)
    command = [sys.executable, work / "script.py", work, executor]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        reports = [process.stdout.readline() for _ in range(3)]
        assert reports[-1].startswith("8 23")
        started = psutil.Process(process.pid).children(recursive=True)
        yield process, started


def left(processes):
    _, alive = psutil.wait_procs(processes, timeout=15)
    return [item for item in alive if item.status() != psutil.STATUS_ZOMBIE]


def test_what_is_finished_when_the_driver_is_killed_is_not_made_again(work):
    with driver(work, "local") as (process, started):
        process.kill()
    assert len(started) >= 2
    assert not left(started)
    shards = work / "shards"
    finished = {p: p.stat().st_mtime_ns for p in shards.iterdir() if p.suffix != ".tmp"}
    assert len(finished) >= 2
    reports = []
    assert made(work, Execution(), reports=reports) == WHOLE
    assert reports[0] == (4 * len(finished), 23, "numbers")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


def test_a_cluster_of_a_steps_own_is_for_this_machine_alone_and_ends_with_it(work):
    pytest.importorskip("ray")
    with driver(work, "ray") as (process, started):
        names = {item.name() for item in started}
        assert {"raylet", "gcs_server"} <= names
        assert not [name for name in names if "dashboard.py" in name]
        for item in [psutil.Process(process.pid), *started]:
            for connection in item.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == signal.SIGTERM
    assert not left(started)


def test_more_workers_than_gpus_are_refused(work, execution):
    with pytest.raises(InvalidConfig, match="num_workers 5 is more than the 4 GPUs of the cluster"):
        made(work, execution("ray", 5))
    with pytest.raises(InvalidConfig, match="num_workers 3 is more than the 2 GPUs here"):
        enough_gpus(3, 2, "here")
    assert enough_gpus(None, 2, "here") == 2
    assert enough_gpus(3, 0, "here") == 3


def test_workers_of_other_versions_are_refused(work, execution, monkeypatch):
    options, version = execution("ray", 1), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: f"{version(name)}.other")
    with pytest.raises(
        ServiceUnavailable,
        match=r"a worker on .* has torch [^,]*[^r], .*, the run has torch .*other, ",
    ):
        made(work, options)


def test_an_address_without_a_cluster_is_named(work):
    pytest.importorskip("ray")
    with pytest.raises(ServiceUnavailable, match=r"execution\.address 127\.0\.0\.1:9: .*ray start"):
        made(work, Execution(executor="ray", address="127.0.0.1:9"))


CONNECT = """
import sys
from data.artifacts.options import Execution
from data.errors import ServiceUnavailable
from tasks.execution.ray_executor import ray_executor

try:
    with ray_executor(Execution(executor="ray", address=sys.argv[1]), 1, 1, on_gpu=False):
        pass
except ServiceUnavailable as error:
    print(error)
"""


def test_an_address_where_something_else_listens_is_named(silent_server):
    pytest.importorskip("ray")
    address = f"127.0.0.1:{silent_server.getsockname()[1]}"
    quick = {"RAY_py_gcs_connect_timeout_s": "1", "RAY_gcs_rpc_server_connect_timeout_s": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, address],
        env=os.environ | quick,
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(f"execution.address {address}: Timed out")


def test_a_run_without_ray_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = build_run("smoke", {"execution": {"executor": "ray"}})
    with pytest.raises(InvalidConfig, match=r"execution\.executor=ray needs: pip install"):
        run_graph(config, DigestMemory())
    with pytest.raises(InvalidConfig, match="say executor=ray too"):
        build_run("smoke", {"execution": {"address": "auto"}})


def test_who_works_is_no_part_of_a_key_and_says_how_many_gpus_it_takes():
    plain, other = (
        run_graph(build_run("smoke", {"execution": given}), DigestMemory())
        for given in ({}, {"num_workers": 3})
    )
    assert plain.steps.keys() == other.steps.keys()
    assert [
        plain.find("detect val").options.num_gpus,
        other.find("detect val").options.num_gpus,
    ] == [1, 3]
    assert ShardedOptions(execution=Execution(executor="ray", address="auto")).num_gpus == 0
