"""Studies: several runs that share what is the same in them."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data.artifacts.digests import DigestMemory
from data.errors import InvalidConfig, PipelineError
from flows.presets import merge
from flows.run_config import RunConfig, build_run
from flows.run_graph import run_graph
from tasks.execution.graph import Graph, renamed, union


class StudyConfig(BaseModel):
    """Runs by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    runs: dict[str, RunConfig] = Field(min_length=1)


def read_study(path: Path) -> StudyConfig:
    """Read a study from a TOML file.

    `preset` and the table `options` hold for all runs; `runs.NAME` has the options in which a run differs.
    The study is called by its `name`, or like the file.

    Raises:
        InvalidConfig: the file cannot be read, or holds something else.
    """
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"study {path}: {error}") from error
    unknown = set(document) - {"name", "preset", "options", "runs"}
    runs = document.get("runs")
    if unknown or not isinstance(runs, dict) or not runs:
        raise InvalidConfig(
            f"study {path}: it needs tables runs.NAME, and may have name, preset and options; "
            f"unknown: {sorted(unknown)}"
        )
    common, preset = document.get("options", {}), document.get("preset", "demo")
    name = document.get("name", path.stem)
    if not isinstance(preset, str) or not isinstance(name, str) or not name:
        raise InvalidConfig(f"study {path}: name and preset must be texts")
    return StudyConfig(
        name=name,
        runs={key: _run(path, key, preset, common, over) for key, over in runs.items()},
    )


def _run(path: Path, name: str, preset: str, common: Any, over: Any) -> RunConfig:
    if not isinstance(common, Mapping) or not isinstance(over, Mapping):
        raise InvalidConfig(f"study {path}: options and runs.{name} must be tables")
    if "preset" in common or "preset" in over:
        raise InvalidConfig(f"study {path}: preset stands at the top and holds for all runs")
    try:
        return build_run(preset, merge(common, over))
    except PipelineError as error:
        raise InvalidConfig(f"study {path}, run {name}: {error}") from error


def study_graph(study: StudyConfig, digests: DigestMemory) -> Graph:
    """Build the union of the runs' graphs; a step's names begin with its runs' names.

    Raises:
        PipelineError: as `run_graph`.
    """
    return union(
        renamed(run_graph(config, digests), f"{name}: ") for name, config in study.runs.items()
    )
