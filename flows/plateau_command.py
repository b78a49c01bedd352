"""The command `detdiffusion plateau`: how long detectors must be trained."""

from typing import Annotated

import typer

from data.artifacts.store import ArtifactStore, default_root
from data.errors import InvalidConfig
from flows.command_options import FileOption, PresetArgument, SetOption, configured_run
from flows.obtaining import carry_out
from flows.plateau import doubling, length_option, real_alone, validated
from flows.request import Request
from flows.run_config import RunConfig
from models.metrics.options import MAIN

app = typer.Typer()


@app.command()
def plateau(
    preset: PresetArgument = "demo",
    assignments: SetOption = None,
    config_file: FileOption = None,
    detector: Annotated[str, typer.Option(help="`main`, or one of retrain.others.")] = MAIN,
    doublings: Annotated[int, typer.Option(min=1, help="At most.")] = 4,
) -> None:
    """Find how long detectors are to be trained on your real images.

    The arm real is trained ever twice as long, until that changes mAP by less than one standard error.

    The seeds are retrain.seeds, at least two. Every training is kept; the last line is the option to set.
    """
    config = configured_run(preset, assignments, config_file)
    if detector not in config.retrain.detectors:
        raise InvalidConfig(
            f"--detector {detector!r}: there are {', '.join(config.retrain.detectors)}"
        )
    seeds = config.retrain.seeds
    if len(seeds) < 2:
        raise InvalidConfig("a standard error needs at least two seeds: set retrain.seeds=[0,1,2]")
    store = ArtifactStore(default_root())
    before = _real_scores(store, config, detector, 1)
    for factor in (2**k for k in range(1, doublings + 1)):
        after = _real_scores(store, config, detector, factor)
        found = doubling(before, after)
        typer.echo(f"{'twice as long':>26}  {found.change:+.4f} ± {found.standard_error:.4f}")
        if found.is_plateau:
            typer.echo(f"{'plateau':>26}  {length_option(config, detector, factor // 2)}")
            return
        before = after
    typer.echo(
        f"{'no plateau yet':>26}  go on from {length_option(config, detector, 2**doublings)}"
    )


def _real_scores(
    store: ArtifactStore, config: RunConfig, detector: str, factor: int
) -> list[float]:
    """Train the arm real so many times as long; its mAP by seed."""
    longer = real_alone(config, detector, factor)
    for stage in ("ingest", "retrain"):
        graph = carry_out(store, Request("run", config.preset, longer, stage))
    found = validated(store, graph, config.retrain.seeds)
    scores = [float(manifest.summary["metrics"]["map"]) for manifest in found]
    shown = "  ".join(f"{score:.4f}" for score in scores)
    typer.echo(f"{length_option(config, detector, factor):>26}  mAP {shown}")
    return scores
