"""Options that several commands of the command line have."""

import json
import logging
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table

from data.errors import InvalidConfig
from data.orphans import end_with_parent
from data.progress import Progress
from flows.presets import PRESETS, kept, merge
from flows.request import Request
from flows.run_config import RunConfig, build_run
from flows.studies import read_study

_COPIED = {"run", "artifact", "kind", "key"}
"""Columns whose cells people give to other commands, and which stay in one line."""

_NARROW = 120
"""Terminals with fewer columns of letters do without these of tables."""

_SPARE = {"stage", "started", "after", "read", "written", "flops"}

PresetArgument = Annotated[
    str, typer.Argument(help=f"{', '.join(PRESETS)}.", autocompletion=lambda: list(PRESETS))
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override an option, e.g. --set train_generator.num_steps=500; may be repeated. "
        "Values are JSON, or text where they are not.",
    ),
]
FileOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file of overrides; --set goes over it. The preset smoke keeps its base model, sizes and "
        "lengths.",
    ),
]

StudyOption = Annotated[
    str | None, typer.Option("--study", help="A study's file or name, instead of a preset.")
]


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn `a.b=1` into nested options; what is no JSON is text.

    >>> parse_assignment("train_generator.num_steps=500")
    {'train_generator': {'num_steps': 500}}
    >>> parse_assignment("retrain.seeds=[0, 1]"), parse_assignment("a=null"), parse_assignment("a=text")
    ({'retrain': {'seeds': [0, 1]}}, {'a': None}, {'a': 'text'})

    Raises:
        InvalidConfig: there is no `=`.
    """
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise InvalidConfig(f"--set {text!r}: write KEY=VALUE, e.g. train_generator.num_steps=500")
    try:
        options: Any = json.loads(value)
    except json.JSONDecodeError:
        options = value
    for part in reversed(name.split(".")):
        options = {part: options}
    return dict(options)


def configured_run(preset: str, assignments: list[str] | None, file: Path | None) -> RunConfig:
    """Build a run from the command line's preset, file and assignments.

    Raises:
        InvalidConfig: an option or value does not exist, or the file cannot be read.
    """
    return build_run(preset, overrides_of(assignments, file, preset))


def overrides_of(
    assignments: list[str] | None, file: Path | None, preset: str = ""
) -> dict[str, Any]:
    """The overrides of a file, but for what the preset keeps, and of assignments, which go over it.

    Raises:
        InvalidConfig: the file cannot be read.
    """
    overrides: dict[str, Any] = {}
    if file is not None:
        try:
            overrides, names = kept(preset, tomllib.loads(file.read_text(encoding="utf-8-sig")))
        except OSError as error:
            raise InvalidConfig(f"--config {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"--config {file}: {error}") from error
        if names:
            typer.echo(f"{preset} keeps its own {', '.join(names)}: --set changes them", err=True)
    for text in assignments or []:
        overrides = merge(overrides, parse_assignment(text))
    return overrides


def requested(
    preset: str, assignments: list[str] | None, file: Path | None, study: str | None
) -> Request:
    """What a preset, or a study in its place, and overrides ask for.

    Raises:
        InvalidConfig: an option or value does not exist, or a file cannot be read.
    """
    if study is None:
        config = configured_run(preset, assignments, file)
        return Request("run", config.preset, config)
    study_config = read_study(study, overrides_of(assignments, file))
    return Request("study", study_config.name, study_config)


def show_digests(done: int, total: int, status: str) -> None:
    """Report on standard error how many files were read."""
    typer.echo(f"{done}/{total} {status}", err=True)


def print_table(table: Table) -> None:
    """Print a table, wide where no terminal says how wide it is.

    On a narrow terminal some columns are left out, and nothing of the others is cut off.
    """
    console = Console(width=None if sys.stdout.isatty() else 240)
    if console.width < _NARROW:
        table.columns = [item for item in table.columns if item.header not in _SPARE]
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = column.header in _COPIED
    console.print(table)


def new_counter() -> ProcessPoolExecutor:
    """A process that counts: it ends with this one, and keeps what libraries warn of to itself."""
    return ProcessPoolExecutor(1, get_context("spawn"), _begin_counter)


def _begin_counter() -> None:
    end_with_parent()
    logging.captureWarnings(capture=True)


def tracked(references: Sequence[str], what: str) -> Iterable[str]:
    """Go through artifacts, with a bar where there is a terminal."""
    console = Console(stderr=True)
    return rich_progress.track(references, what, console=console, disable=not sys.stderr.isatty())


@contextmanager
def shown_progress(what: str) -> Iterator[Progress]:
    """Show the progress of one piece of work by a bar, where there is a terminal."""
    console = Console(stderr=True)
    with rich_progress.Progress(console=console, disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task(what)
        yield lambda done, total, status: bars.update(
            bar, completed=done, total=total, description=f"{what}: {status}"
        )
