"""The smoke preset under faults: after each, a rerun ends as a run that nothing happened to."""

import os
import shutil
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest

from data.artifacts.garbage import garbage
from data.artifacts.records import read_records, record_name
from data.artifacts.roots import Keep
from data.artifacts.store import ArtifactStore

SEED = int(os.environ.get("FAULT_SEED", "0"))
MOMENTS = int(os.environ.get("FAULT_MOMENTS", "2"))

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {"cut": cut, "a bit flipped": flip, "deleted": Path.unlink}


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


def cpu_seconds(place):
    total = 0.0
    for process in place.processes():
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda item: item.name)
def test_a_run_that_was_ended_at_random_moments(reference, new_place, ends_the_same, noted, number):
    started, rng = time.monotonic(), np.random.default_rng([SEED, number])
    everything = [path.name for path in reference.root.iterdir() if path.name != "runs"]
    place = new_place(*everything)
    moments = left = MOMENTS if number == signal.SIGKILL else 1
    while left:
        process, moment = place.start(), rng.uniform(0, 30)
        place.wait_until(process, lambda of=place, moment=moment: cpu_seconds(of) > moment)
        if process.poll() is not None:  # it came to its end before
            ends_the_same(place)
            shutil.rmtree(place.folder)
            place = new_place(*everything)
            continue
        left -= 1
        if number == signal.SIGKILL:
            place.kill(process)
        else:
            process.send_signal(number)
            process.wait()
        place.wait_for_end()
    ends_the_same(place)
    noted(
        f"{number.name} after 0 to 30 s of processor time",
        moments, time.monotonic() - started, "nothing",
    )  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "a bit flipped"])
def test_the_newest_checkpoint_is_damaged(new_place, ends_the_same, noted, damage):
    started = time.monotonic()
    place = new_place("train-generator", "report")
    process = place.start()
    place.wait_until(process, lambda: len(list(place.root.rglob("checkpoint-*.pt"))) == 2)
    place.kill(process)
    place.wait_for_end()
    newest = max(place.root.rglob("checkpoint-*.pt"))
    DAMAGES[damage](newest)
    ends_the_same(place)
    (log,) = (place.root / "train-generator").glob("*/log.txt")
    assert f"{newest.name} is damaged" in log.read_text()
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
    assert place.start().wait() == 1
    assert "no space left" in place.output or "Make room and run again" in place.output
    small_disk("remount", "size=200m")
    ends_the_same(place)
    noted("disk full", 1, time.monotonic() - started, "without generator, report")


def test_the_root_is_read_only(new_place, ends_the_same, noted, small_disk):
    started = time.monotonic()
    place = new_place("report", root=small_disk("size=200m"))
    small_disk("remount", "ro")
    assert place.start().wait() == 1
    assert "cannot read or write artifacts under" in place.output
    small_disk("remount", "rw")
    ends_the_same(place)
    noted("root read-only", 1, time.monotonic() - started, "without report")


def test_the_clock_is_set_back(new_place, ends_the_same, noted):
    """All that is there was made tomorrow."""
    started, place = time.monotonic(), new_place("train-generator", "report")
    tomorrow = time.time() + 86400
    for path in place.root.rglob("*"):
        os.utime(path, (tomorrow, tomorrow))
    (before,) = read_records(place.root)
    path = place.root / record_name(before.id)
    day = f"{datetime.fromtimestamp(tomorrow, UTC):%Y%m%d}"
    path.rename(path.with_name(day + path.name[len(day) :]))
    ends_the_same(place)
    newest, _ = read_records(place.root)
    assert newest.created_at[:10].replace("-", "") < day
    assert not garbage(ArtifactStore(place.root), Keep())
    noted("clock set back a day", 1, time.monotonic() - started, "without generator, report")


def test_two_runs_at_once(new_place, ends_the_same, noted):
    started, place = time.monotonic(), new_place("label-attributes", "compare", "report")
    processes = [place.start(), place.start()]
    assert [process.wait() for process in processes] == [0, 0], place.output
    ends_the_same(place)
    noted(
        "two runs at once", 1, time.monotonic() - started, "without attributes, comparison, report"
    )
