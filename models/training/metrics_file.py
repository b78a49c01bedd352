"""The training's metrics on disk, a line of JSON a step."""

import json
from pathlib import Path

from data.artifacts.store import durable_file

Metrics = dict[str, float]

METRICS_NAME = "metrics.jsonl"

_LONGEST_LINES = 1 << 14
"""Bytes that hold at least one line."""


def read_metrics(path: Path) -> list[Metrics]:
    """Read `metrics.jsonl`; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def last_metrics(path: Path) -> Metrics | None:
    """Read the last whole line of `metrics.jsonl`, however long the file is."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(file.seek(0, 2) - _LONGEST_LINES, 0))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else None


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after `step`, which will be made again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    with durable_file(path) as file:
        file.writelines(f"{json.dumps(line)}\n".encode() for line in kept)
