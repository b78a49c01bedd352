"""One flow per stage, each cached by itself, and the flow that runs them all.

Every flow takes the whole run's configuration, from which it knows the keys of its inputs; to rerun
one stage, give it the same options as the run that made them.
"""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from prefect import Flow, State, flow
from prefect.states import Completed, Failed

from flows.presets import RunConfig
from tasks.artifacts import obtain_artifact, show_artifact
from tasks.execution import available_cores, default_root
from tasks.stages import identify

DEMO = RunConfig.model_validate({"preset": "demo"})


def _run(stage: str, config: RunConfig, num_workers: int | None) -> State[Any]:
    """Get and show one stage's artifact; the returned state is named `Cached` if it was there.

    Args:
        num_workers: CPU cores to use; None for all.
    """
    root, configs = default_root(), config.stage_configs()
    identity = identify(configs)[stage]
    cores = num_workers or available_cores()
    state = obtain_artifact(root, identity, configs[stage], cores, return_state=True)
    if not state.is_completed():
        return _failure(state)
    manifest = state.result()
    show_artifact(root, manifest)
    return Completed(name=state.name, data=manifest)


@flow(name="ingest")
def ingest(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Read a COCO-format data set, or make Scenes, and write its tables."""
    return _run("ingest", config, num_workers)


@flow(name="train-detector")
def train_detector(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Train the detector that tells easy objects from hard ones."""
    return _run("train-detector", config, num_workers)


@flow(name="train-scorer")
def train_scorer(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Train the independent detector that judges generated images."""
    return _run("train-scorer", config, num_workers)


@flow(name="extract-attributes")
def extract_attributes(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Label every object easy or hard by the detector's success on it."""
    return _run("extract-attributes", config, num_workers)


@flow(name="train-generator")
def train_generator(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Fine-tune the layout-conditioned diffusion model."""
    return _run("train-generator", config, num_workers)


@flow(name="synthesize")
def synthesize(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Generate synthetic COCO data sets at the chosen difficulty."""
    return _run("synthesize", config, num_workers)


@flow(name="retrain")
def retrain(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Train detectors on real and on real + synthetic images."""
    return _run("retrain", config, num_workers)


@flow(name="evaluate")
def evaluate(config: RunConfig = DEMO, num_workers: int | None = None) -> State[Any]:
    """Measure fidelity and trainability and write the report."""
    return _run("evaluate", config, num_workers)


@flow(name="end-to-end")
def end_to_end(config: RunConfig = DEMO) -> State[Any]:
    """Run every stage that has no intact artifact; ends in the evaluation's state."""
    for group in (
        (ingest,),
        (train_detector, train_scorer),
        (extract_attributes,),
        (train_generator,),
        (synthesize,),
        (retrain,),
        (evaluate,),
    ):
        states = _together(config, *group)
        failed = [state for state in states if not state.is_completed()]
        if failed:
            return _failure(failed[0])
    return Completed(data=states[0].result())


def _failure(state: State[Any]) -> State[Any]:
    """A failed state for the caller with the same message and error, raised by nobody on the way."""
    return Failed(message=state.message, data=state.result(raise_on_failure=False))


def _together(config: RunConfig, *stages: Flow[..., Any]) -> list[State[Any]]:
    """Run independent stages side by side, each on its share of the cores.

    Training one small detector does not use a second core; training two does.
    """
    share = max(available_cores() // len(stages), 1)

    def start(stage: Flow[..., Any]) -> Any:
        return stage(config, share, return_state=True)

    with ThreadPoolExecutor(len(stages)) as pool:
        running = [pool.submit(copy_context().run, start, stage) for stage in stages]
    return [future.result() for future in running]
