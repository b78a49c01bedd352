"""The smoke preset under faults: after each, a rerun ends as a run that nothing happened to."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from data.artifacts.inventory import artifacts
from data.artifacts.store import ArtifactStore
from tasks.catalogue import KINDS

SEED = int(os.environ.get("FAULT_SEED", "0"))
MOMENTS = int(os.environ.get("FAULT_MOMENTS", "2"))
RUN = "from flows.command_line import main; main()"

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"cut": cut, "a bit flipped": flip, "deleted": Path.unlink}


class Place:
    """A root, a folder to start runs in, and Prefect's own."""

    def __init__(self, folder, root=None):
        self.folder, self.root = folder, root or folder / "root"
        for name in ("prefect", "cwd"):
            (folder / name).mkdir(parents=True)

    def start(self, *arguments, **variables):
        """Start Python in this place, by default on a run."""
        environment = os.environ | {
            "DETDIFFUSION_HOME": str(self.root),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        environment.pop("PREFECT_API_URL", None)
        with (self.folder / "prefect" / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, *(arguments or ("-c", RUN, "run", "smoke"))],
                cwd=self.folder / "cwd",
                env=environment | variables,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def serve(self, port):
        """Start a Prefect server; returns its process when it answers, and its address."""
        app = ["--factory", "prefect.server.api.server:create_app", "--port", str(port)]
        process, url = self.start("-m", "uvicorn", *app), f"http://127.0.0.1:{port}/api"
        while True:
            try:
                httpx.get(f"{url}/health", timeout=10).raise_for_status()
            except httpx.HTTPError:
                assert process.poll() is None, self.output
                time.sleep(0.5)
            else:
                return process, url

    def run(self):
        """Run to the end; returns the exit status."""
        return self.start().wait()

    @property
    def output(self):
        return (self.folder / "prefect" / "output.txt").read_text()

    def processes(self):
        """Those that work on this root."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DETDIFFUSION_HOME") == str(self.root):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def servers(self):
        """Prefect's, of them."""
        return [item for item in self.processes() if "uvicorn" in item.cmdline()]

    def kill(self, process):
        """Kill a run's first process; ends Prefect's temporary server, which outlives it."""
        servers = self.servers()
        process.kill()
        process.wait()
        for item in servers:
            item.terminate()

    def wait_for_end(self):
        """No process is left, soon after."""
        deadline = time.monotonic() + 120
        while self.processes():
            assert time.monotonic() < deadline, self.processes()
            time.sleep(0.5)

    def made(self):
        """Intact artifacts by reference."""
        store = ArtifactStore(self.root)
        found = (store.lookup(*name.split("/")) for name in artifacts(self.root))
        return {manifest.reference: manifest for manifest in found if manifest}


def bytes_of(made):
    """Digest of every file, but of those that tell the time."""
    return {
        f"{reference}/{name}": record.sha256
        for reference, manifest in made.items()
        for name, record in manifest.files.items()
        if name not in KINDS[manifest.kind].timed
    }


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """The place of an undisturbed run; FAULT_REFERENCE names a folder in which it is kept."""
    kept = os.environ.get("FAULT_REFERENCE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("reference") / "place"
    if (folder / "root" / "report").is_dir():
        place = Place.__new__(Place)
        place.folder, place.root = folder, folder / "root"
        return place
    place = Place(folder)
    assert place.run() == 0, place.output
    return place


@pytest.fixture
def new_place(reference, tmp_path):
    """Makes a place with a copy of the undisturbed run without some kinds' artifacts."""

    def create(*without, root=None):
        place = Place(tmp_path / "place", root)
        leave_out = shutil.ignore_patterns(".work", *without)
        shutil.copytree(reference.root, place.root, ignore=leave_out, dirs_exist_ok=True)
        return place

    return create


@pytest.fixture
def ends_the_same(reference):
    """Runs again, and compares with the undisturbed run."""

    def check(place, status=0):
        place.wait_for_end()
        before = place.made()
        assert place.run() == status, place.output
        place.wait_for_end()
        after = place.made()
        assert bytes_of(after) == bytes_of(reference.made())
        assert after == after | before  # made_at and all
        assert not list((place.folder / "cwd").iterdir())
        assert {path.name for path in place.folder.iterdir()} <= {"root", "prefect", "cwd"}

    return check


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a root of so many bytes, and changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)  # noqa: S607


def wait_until(process, is_time):
    """Let a run go on until it is time, or it has ended."""
    while process.poll() is None and not is_time():
        time.sleep(0.5)


def cpu_seconds(place):
    total = 0.0
    for process in place.processes():
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda item: item.name)
def test_a_run_that_was_ended_at_random_moments(new_place, ends_the_same, noted, number):
    started, rng = time.monotonic(), np.random.default_rng([SEED, number])
    place = new_place("train-generator", "report")
    moments = MOMENTS if number == signal.SIGKILL else 1
    for _ in range(moments):
        process, moment = place.start(), rng.uniform(0, 30)
        wait_until(process, lambda moment=moment: cpu_seconds(place) > moment)
        if number == signal.SIGKILL:
            place.kill(process)
        else:
            process.send_signal(number)
            process.wait()
        place.wait_for_end()
    ends_the_same(place)
    noted(
        f"{number.name} after 0 to 30 s of processor time",
        moments, time.monotonic() - started, "without generator, report",
    )  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "a bit flipped"])
def test_the_newest_checkpoint_is_damaged(new_place, ends_the_same, noted, damage):
    started = time.monotonic()
    place = new_place("train-generator", "report")
    process = place.start()
    wait_until(process, lambda: len(list(place.root.rglob("checkpoint-*.pt"))) == 2)
    place.kill(process)
    place.wait_for_end()
    newest = max(place.root.rglob("checkpoint-*.pt"))
    DAMAGES[damage](newest)
    ends_the_same(place)
    (log,) = (place.root / "train-generator").glob("*/log.txt")
    assert f"{newest.name} is damaged and removed" in log.read_text()
    noted(f"newest checkpoint {damage}", 1, time.monotonic() - started, "without generator, report")


def test_artifacts_are_damaged(reference, new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place()
    rng = np.random.default_rng([SEED, 1])
    kinds = ["label-attributes", "compare", "synthesize"]
    for kind, damage in zip(kinds, DAMAGES.values(), strict=True):
        folder = min((place.root / kind).iterdir())
        (manifest,) = (item for item in place.made().values() if item.key == folder.name)
        damage(folder / rng.choice(sorted(manifest.files)))
    assert len(place.made()) == len(reference.made()) - len(kinds)
    ends_the_same(place)
    noted(
        f"a file of an artifact {', '.join(DAMAGES)}",
        len(kinds),
        time.monotonic() - started,
        "whole",
    )


def test_the_disk_is_full(reference, new_place, ends_the_same, noted, small_disk):
    started = time.monotonic()
    place = new_place("train-generator", "report", root=small_disk("size=200m"))
    used = shutil.disk_usage(place.root).used
    small_disk("remount", f"size={used + 2_000_000}")
    assert place.run() == 1
    assert "no space left" in place.output or "Make room and run again" in place.output
    small_disk("remount", "size=200m")
    ends_the_same(place)
    noted("disk full", 1, time.monotonic() - started, "without generator, report")


def test_the_root_is_read_only(new_place, ends_the_same, noted, small_disk):
    started = time.monotonic()
    place = new_place("report", root=small_disk("size=200m"))
    small_disk("remount", "ro")
    assert place.run() == 1
    assert "cannot write artifacts under" in place.output
    small_disk("remount", "rw")
    ends_the_same(place)
    noted("root read-only", 1, time.monotonic() - started, "without report")


def test_two_runs_at_once(new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place("label-attributes", "compare", "report")
    processes = [place.start(), place.start()]
    assert [process.wait() for process in processes] == [0, 0], place.output
    ends_the_same(place)
    noted(
        "two runs at once", 1, time.monotonic() - started, "without attributes, comparison, report"
    )


def test_prefects_temporary_server_is_killed(new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place("train-generator", "report")
    process = place.start()
    wait_until(process, (place.root / ".work" / "train-generator").exists)
    (server,) = place.servers()
    server.kill()
    assert process.wait(1800) == 0, place.output
    assert place.output.count("the run goes on, but the Prefect UI does not show it") == 1
    assert "warning: the run's Prefect server is gone" in place.output
    ends_the_same(place)
    noted(
        "Prefect's temporary server killed",
        1,
        time.monotonic() - started,
        "without generator, report",
    )


def test_a_prefect_server_of_ones_own_is_killed_and_started_again(new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place("train-generator", "report")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server, url = place.serve(port)
    process = place.start(PREFECT_API_URL=url)
    wait_until(process, (place.root / ".work" / "train-generator").exists)
    server.kill()
    server.wait()
    server, _ = place.serve(port)
    assert process.wait(1800) == 0, place.output
    assert "server is gone" not in place.output
    (flow_run,) = httpx.post(f"{url}/flow_runs/filter", json={}, timeout=60).json()
    assert flow_run["state_type"] == "COMPLETED"
    server.terminate()
    server.wait()
    ends_the_same(place)
    noted(
        "a Prefect server of one's own killed and started again",
        1,
        time.monotonic() - started,
        "without generator, report",
    )
