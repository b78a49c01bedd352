"""Studies: several runs that share what is the same in them."""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from data.artifacts.digests import DigestMemory
from data.errors import InvalidConfig, PipelineError
from data.option_errors import HintingModel
from flows.nodes import REPORT
from flows.presets import merge
from flows.run_config import RunConfig, build_run
from flows.run_graph import run_graph
from flows.study_presets import STUDIES, StudyName
from models.detector.config_sources import dotted
from models.metrics.options import ConclusionOptions
from tasks.execution.graph import Graph, Node, extended, renamed, union

CONCLUSION = "conclude"
"""Name of a study's last step."""

_ASKED = tuple(ConclusionOptions.model_fields)
_KEYS = ("name", "preset", "seeds", "options", "runs", *_ASKED)


class StudyConfig(HintingModel):
    """Runs by name, or by name and seed, and what is asked of them."""

    name: str = Field(min_length=1)
    runs: dict[str, RunConfig] = Field(min_length=1)
    asked: ConclusionOptions = ConclusionOptions()

    @model_validator(mode="after")
    def _runs_are_there(self) -> Self:
        names = {name.partition("/")[0] for name in self.runs}
        if unknown := self.asked.runs - names:
            raise ValueError(
                f"questions or numbers name the runs {sorted(unknown)}: there are {sorted(names)}"
            )
        if (self.asked.numbers or self.asked.best_of) and names != self.runs.keys():
            raise ValueError(
                "numbers and best_of are of runs without seeds: give the seeds as options.retrain.seeds"
            )
        return self


class NamedStudy(HintingModel):
    """A study by its name, with options over those that its runs have in common."""

    name: StudyName
    options: dict[str, Any] = Field(default_factory=dict, description="As those of a run.")


def by_name(given: Any) -> Any:
    """The study that a `NamedStudy` names; anything else as it is.

    Raises:
        InvalidConfig: there is no such study, or an option of it.
    """
    if not isinstance(given, Mapping) or "runs" in given:
        return given
    named = NamedStudy.model_validate(given)
    return read_study(named.name, named.options)


def read_study(source: str, overrides: Mapping[str, Any] = MappingProxyType({})) -> StudyConfig:
    """Read a study: a TOML file, or one of `study_presets.STUDIES` by name.

    `preset` and the table `options` hold for all runs; `runs.NAME` has the options in which a run differs.
    With `seeds`, or an override of `retrain.seeds` in their place, there is each run once per seed, of its
    generator and of the detectors it compares.
    The study is called by its `name`, or like the file.

    Args:
        overrides: go over `options`; what a run differs in stays.

    Raises:
        InvalidConfig: the file cannot be read, or holds something else.
    """
    path = Path(source)
    if source in STUDIES and not path.exists():
        return _study(source, source, STUDIES[source], overrides)
    try:
        return _study(
            source, path.stem, tomllib.loads(path.read_text(encoding="utf-8-sig")), overrides
        )
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(
            f"study {source}: {error}; give a TOML file, or one of {', '.join(STUDIES)}"
        ) from error


def _study(
    source: str, name: str, document: Mapping[str, Any], overrides: Mapping[str, Any]
) -> StudyConfig:
    unknown = set(document) - set(_KEYS)
    runs = document.get("runs")
    if unknown or not isinstance(runs, Mapping) or not runs:
        raise InvalidConfig(
            f"study {source}: it needs tables runs.NAME, and may have name, preset, seeds, options and "
            f"{', '.join(_ASKED)}; unknown: {sorted(unknown)}"
        )
    common, preset = document.get("options", {}), document.get("preset", "demo")
    seeds, given = document.get("seeds", ()), dotted(overrides)
    if seeds:
        if "train_generator.seed" in given:
            raise InvalidConfig(
                f"study {source} has a run for each seed: give them as retrain.seeds"
            )
        seeds = given.get("retrain.seeds", seeds)
    common = merge(common, overrides) if isinstance(common, Mapping) else common
    name = document.get("name", name)
    if not isinstance(preset, str) or not isinstance(name, str) or not name:
        raise InvalidConfig(f"study {source}: name and preset must be texts")
    found = {key: _run(source, key, preset, common, over) for key, over in runs.items()}
    try:
        return StudyConfig(
            name=name,
            runs=_seeded(source, found, seeds),
            asked={key: document[key] for key in _ASKED if key in document},
        )
    except ValidationError as error:
        problems = "; ".join(f"{item['loc']}: {item['msg']}" for item in error.errors())
        raise InvalidConfig(f"study {source}: {problems}") from error


def _seeded(source: str, runs: Mapping[str, RunConfig], seeds: Any) -> dict[str, RunConfig]:
    """Each run once per seed."""
    if not isinstance(seeds, list | tuple) or not all(type(seed) is int for seed in seeds):
        raise InvalidConfig(f"study {source}: seeds must be a list of whole numbers")
    if "/" in "".join(runs):
        raise InvalidConfig(f"study {source}: names of runs have no slash")
    if not seeds:
        return dict(runs)
    return {
        f"{name}/{seed}": config.model_copy(
            update={
                "train_generator": config.train_generator.model_copy(update={"seed": seed}),
                "retrain": config.retrain.model_copy(update={"seeds": (seed,)}),
            }
        )
        for name, config in runs.items()
        for seed in seeds
    }


def _run(source: str, name: str, preset: str, common: Any, over: Any) -> RunConfig:
    if not isinstance(common, Mapping) or not isinstance(over, Mapping):
        raise InvalidConfig(f"study {source}: options and runs.{name} must be tables")
    if "preset" in common or "preset" in over:
        raise InvalidConfig(f"study {source}: preset stands at the top and holds for all runs")
    try:
        return build_run(preset, merge(common, over))
    except PipelineError as error:
        raise InvalidConfig(f"study {source}, run {name}: {error}") from error


def study_graph(
    study: StudyConfig, digests: DigestMemory, missing: Mapping[str, Collection[str]]
) -> Graph:
    """Build the union of the runs' graphs, and the step that answers the study's questions.

    A step's names begin with its runs' names.

    Args:
        missing: of a run, the detectors that its comparison is made without.

    Raises:
        PipelineError: as `run_graph`.
    """
    runs = union(
        renamed(run_graph(config, digests, missing.get(name, ())), f"{name}: ")
        for name, config in study.runs.items()
    )
    reports = {f"reports/{name}": f"{name}: {REPORT}" for name in study.runs}
    node = Node(CONCLUSION, "evaluate", "conclude", study.asked, reports)
    return extended(runs, node, digests)
