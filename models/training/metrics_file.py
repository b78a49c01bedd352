"""The training's metrics on disk, a line of JSON a step."""

import json
from collections.abc import Iterable
from pathlib import Path

from data.artifacts.files import durable_file

Metrics = dict[str, float]

METRICS_NAME = "metrics.jsonl"

TIMED = ("images_per_second", "peak_memory_gb")
"""What is another each time that the same is trained."""


def read_metrics(path: Path) -> list[Metrics]:
    """Read `metrics.jsonl`; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be made again."""
    write_metrics(path, [line for line in read_metrics(path) if line["step"] <= step])


def write_metrics(path: Path, lines: Iterable[Metrics]) -> None:
    """Write the metrics of steps."""
    with durable_file(path) as file:
        file.writelines(f"{json.dumps(line)}\n".encode() for line in lines)
