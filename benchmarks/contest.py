"""Contestants of a benchmark, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from coco_files import NUM_ANNOTATIONS, NUM_IMAGES, write_instances

_POLL_SECONDS = 0.02
Arrays = dict[str, np.ndarray]
Contestant = Callable[[Namespace], Callable[[], Arrays]]
"""Does the work, which is timed; what it returns collects what was found, which is not."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant did.

    Attributes:
        seconds: of its work, without the imports.
        peak_bytes: highest resident memory of its process and its children's together; 0 if
            nobody looked.
        arrays: what it found, for comparison.
    """

    seconds: float
    peak_bytes: int
    arrays: Arrays


def parser(description: str | None) -> ArgumentParser:
    """Options that all benchmarks have."""
    options = ArgumentParser(description=description)
    options.add_argument("--scale", type=float, default=1, help="1 is COCO's size")
    options.add_argument("--rounds", type=int, default=3, help="the fastest of each counts")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--contestant", help="for the benchmark's own use")
    options.add_argument("--folder", type=Path, help="where the files go; otherwise temporary")
    options.add_argument("--file", default="instances.json", help="for the benchmark's own use")
    return options


def instances_file(folder: Path, scale: float, name: str = "instances.json") -> Path:
    """Make a COCO-like file, unless it is there."""
    path = folder / name
    if not path.exists():
        print(f"making {name}, {scale:g} times COCO's size", flush=True)
        write_instances(path, max(int(NUM_IMAGES * scale), 1), max(int(NUM_ANNOTATIONS * scale), 1))
    return path


def main(
    options: ArgumentParser,
    contestants: Mapping[str, Contestant],
    compare: Callable[[Namespace], bool],
) -> None:
    """Run one contestant, where the command line names it, or the whole comparison; exit 1 below the goal."""
    given = options.parse_args()
    if given.contestant:
        _work(given, contestants[given.contestant])
        return
    with tempfile.TemporaryDirectory() as temporary:
        given.folder = given.folder or Path(temporary)
        given.folder.mkdir(parents=True, exist_ok=True)
        sys.exit(0 if compare(given) else 1)


def run(
    given: Namespace, contestant: str, file: str = "instances.json", *, watch: bool = True
) -> Result:
    """Run one contestant in a process of its own.

    Args:
        watch: look at its memory all the time, which takes a good part of a core.
    """
    command = [sys.executable, sys.argv[0], "--contestant", contestant, "--file", file]
    command += ["--folder", str(given.folder), "--workers", str(given.workers)]
    process = subprocess.Popen(command)  # noqa: S603  # this very script
    peak = 0
    while watch and process.poll() is None:
        peak = max(peak, _resident_bytes(process.pid))
        time.sleep(_POLL_SECONDS)
    if process.wait():
        sys.exit(f"{contestant} failed")
    seconds = json.loads((given.folder / "seconds.json").read_text())
    with np.load(given.folder / "found.npz") as found:
        result = Result(seconds, peak, dict(found))
    memory = f", {peak / 1e6:.0f} MB" if watch else ""
    print(f"{contestant}: {seconds:.2f} s{memory}", flush=True)
    return result


def fastest(given: Namespace, contestants: list[str]) -> dict[str, Result]:
    """Run all contestants in turn, several rounds; the fastest run of each."""
    results: dict[str, Result] = {}
    for _ in range(given.rounds):
        for name in contestants:
            result = run(given, name, watch=False)
            if name not in results or result.seconds < results[name].seconds:
                results[name] = result
    return results


def equal(mine: Arrays, theirs: Arrays) -> bool:
    """Whether two contestants found the same."""
    return mine.keys() == theirs.keys() and all(
        np.array_equal(mine[name], theirs[name]) for name in mine
    )


def _resident_bytes(pid: int) -> int:
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


def _work(given: Namespace, contestant: Contestant) -> None:
    start = time.perf_counter()
    collect = contestant(given)
    seconds = time.perf_counter() - start
    np.savez(given.folder / "found.npz", **collect())
    (given.folder / "seconds.json").write_text(json.dumps(seconds))
