"""The training's metrics on disk, a line of JSON a step."""

import json
from pathlib import Path

from data.artifacts.store import durable_file

Metrics = dict[str, float]

METRICS_NAME = "metrics.jsonl"


def read_metrics(path: Path) -> list[Metrics]:
    """Read `metrics.jsonl`; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be made again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    with durable_file(path) as file:
        file.writelines(f"{json.dumps(line)}\n".encode() for line in kept)
