"""The command `detdiffusion cost`: what a run takes, step by step, before it starts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from rich.table import Table

from data.artifacts.digests import DigestMemory
from data.artifacts.manifest import Manifest
from data.artifacts.store import ArtifactStore, default_root
from data.errors import InvalidModel
from flows.command_options import (
    FileOption,
    PresetArgument,
    SetOption,
    configured_run,
    new_counter,
    print_table,
    show_digests,
)
from flows.run_config import RunConfig, has_data
from flows.run_graph import outline, run_graph
from models.counts import COUNTERS, CountedModel, known_counts
from models.passes import ModelCount, Speed
from models.precision import has_gpu
from tasks.estimates.cost import Cpu, Device, Gpus, schedule
from tasks.estimates.data_size import data_sizes
from tasks.estimates.forecast import duration, gpus_here
from tasks.estimates.work import Facts, Work, counted_models, work_of
from tasks.execution.child import call
from tasks.execution.graph import Graph, Step
from tasks.execution.machine import available_cores

app = typer.Typer()

_PREFIXES = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9}

_LONG = 10
"""Seconds, from which on a step's time says something of its estimate."""

_CLOSE = 2
"""Factor within which an estimate is meant to be right."""

Row = dict[str, float | str | None]
"""Of a table: column to a number, an absent one, or the step's name."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """What a process with torch finds out.

    Attributes:
        counts: of models, by key.
        core: of this machine; None where there is a GPU.
    """

    counts: Mapping[str, ModelCount]
    core: Speed | None


@app.command()
def cost(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    gpus: Annotated[int, typer.Option(min=1, help="Of the second column of H100s.")] = 8,
    *,
    against: Annotated[
        bool,
        typer.Option("--against", help="Beside it what the steps took that are in the store."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: seconds and bytes.")
    ] = False,
) -> None:
    """Say what every step of a preset takes.

    Operations, bytes, hours on GPUs and here.

    Where no data set is given, it is COCO 2017. The rates of a GPU are an H100's, most of them measured;
    what --against divides by is estimated for the GPUs, or cores, that are here.
    """
    config = configured_run(preset, assignments, config_file)
    graph, store = outline(config), ArtifactStore(default_root())
    with DigestMemory(store.root, show_digests) as digests:
        data = data_sizes(graph, digests, given=has_data(config))
        took = _made(store, graph, run_graph(config, digests)) if against else {}
    if against and not took:
        typer.echo(f"no step of it is in {store.root}", err=True)
    found = _measured(counted_models(graph))
    facts = Facts(data, found.counts)
    devices: dict[str, Device] = {f"{count} H100": Gpus(count) for count in sorted({1, gpus})}
    here: Device = gpus_here()
    if found.core:
        here = devices[f"{available_cores()} cores"] = Cpu(available_cores(), found.core)
    works = {step.identity.reference: work for step in graph if (work := work_of(step, facts))}
    rows = [_row(step, works.get(step.identity.reference), devices, here, took) for step in graph]
    total = _total(graph, works, devices, rows)
    if as_json:
        typer.echo(json.dumps({"steps": rows, "total": total}, indent=1))
        return
    _show(config, [*rows, total])


def _measured(models: Sequence[CountedModel]) -> _Measured:
    """Count models that are not known, and the speed of a core where there is no GPU."""
    counts = dict(known_counts())
    unknown = [model for model in models if model.key not in counts]
    core = None
    if unknown:
        typer.echo("counting on tensors without data, up to some minutes", err=True)
    with new_counter() as counter:
        for model in unknown:
            counted = counter.submit(call, COUNTERS[model.kind], "count_model", model.options)
            try:
                counts[model.key] = counted.result()
            except InvalidModel as error:
                typer.echo(f"not known, and in no sum: {error}", err=True)
        if not has_gpu():
            core = counter.submit(call, "models.speed", "measured_speed").result()
    return _Measured(counts, core)


def _made(store: ArtifactStore, outlined: Graph, graph: Graph) -> dict[str, Manifest]:
    """Manifests of the steps that are in the store, by the references of the outline."""
    found = {}
    for step in outlined:
        identity = graph.find(step.name).identity
        if manifest := store.read(identity.kind, identity.key):
            found[step.identity.reference] = manifest
    return found


def _row(
    step: Step,
    work: Work | None,
    devices: Mapping[str, Device],
    here: Device,
    took: Mapping[str, Manifest],
) -> Row:
    """Of a step; without estimates where its model was not counted."""
    made = took.get(step.identity.reference)
    estimated = ("flops", "read", "written", "in the store", "GPU-hours", *devices)
    row: Row = {"step": step.name, **dict.fromkeys(estimated)}
    if work:
        row |= {
            "flops": work.flops,
            "read": work.read,
            "written": work.stored + work.scratch,
            "in the store": work.stored,
            "GPU-hours": Gpus(1).gpu_seconds(step, work) / 3600,
            **{name: device.seconds(step, work) for name, device in devices.items()},
        }
    if not took:
        return row
    return row | {
        "took": made.seconds if made else None,
        "took / estimate": made.seconds / here.seconds(step, work) if made and work else None,
        "stored": sum(item.size for item in made.files.values()) if made else None,
    }


def _total(
    graph: Graph, works: Mapping[str, Work], devices: Mapping[str, Device], rows: Sequence[Row]
) -> Row:
    """Sums; of estimated times that of steps side by side."""
    total: Row = {name: None for row in rows for name in row}
    for name in total.keys() - {"step", "took", "took / estimate"}:
        total[name] = sum(float(row[name] or 0) for row in rows)
    planned = {name: schedule(graph, works, item).seconds for name, item in devices.items()}
    return total | {"step": "all, side by side"} | planned


def _show(config: RunConfig, rows: Sequence[Row]) -> None:
    title = config.preset if has_data(config) else f"{config.preset}, of COCO 2017"
    columns = list(rows[0])
    table = Table("step", *columns[1:], title=title)
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in columns))
    print_table(table)
    ratios = [
        float(ratio)
        for row in rows
        if (ratio := row.get("took / estimate")) and float(row.get("took") or 0) >= _LONG
    ]
    if ratios:
        close = sum(1 / _CLOSE <= ratio <= _CLOSE for ratio in ratios)
        typer.echo(
            f"{close} of {len(ratios)} steps of {_LONG} s and more took between 1/{_CLOSE} and {_CLOSE} "
            "times their estimate"
        )


def _cell(column: str, value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if column == "flops":
        return _scaled(value)
    if column in {"read", "written", "in the store", "stored"}:
        return ByteSize(value).human_readable(decimal=True)
    if column in {"GPU-hours", "took / estimate"}:
        return f"{value:.2g}"
    return duration(value)


def _scaled(value: float) -> str:
    """A number with its prefix.

    >>> _scaled(1.44e12), _scaled(3e20), _scaled(0)
    ('1.44 T', '300 E', '0')
    """
    if not value:
        return "0"
    prefix, scale = next((p, s) for p, s in _PREFIXES.items() if value >= s or p == "G")
    return f"{value / scale:.3g} {prefix}"
