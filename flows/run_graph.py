"""The graph of a run: the one place that knows the whole of it."""

from collections.abc import Collection, Iterable, Iterator
from importlib.util import find_spec

from data.artifacts.digests import DigestMemory
from data.artifacts.store import ArtifactStore
from data.attributes.options import VerificationOptions
from data.errors import InvalidConfig
from data.layouts.options import POLICIES
from data.option_errors import meant
from flows.arms import arms_of, spare_users, training_policies
from flows.nodes import (
    INGEST,
    TRAINED_SCORER,
    arm_nodes,
    attribute_nodes,
    comparison_node,
    fidelity_nodes,
    generator_nodes,
    ingest_options,
    report_node,
    set_node,
    training_node,
    training_set_nodes,
    unlabelled_nodes,
)
from flows.retrain_config import is_mixed
from flows.run_config import RunConfig, ScorerResults, changes_to_preset, has_data
from models.detector.given_options import DetectorFolder, DetectorSource
from models.detector.options import require_real
from models.generator.drawing_options import check_classes
from models.metrics.options import SCORER
from tasks.catalogue import KINDS
from tasks.execution.context import artifact_name
from tasks.execution.graph import Graph, Node, Step, resolve

STAGES = {
    "ingest": "Read a COCO-format data set, or make Scenes, and write its tables.",
    "train-detector": "Train the detector that tells easy objects from hard ones.",
    "train-scorer": "Train the independent detector that judges generated images.",
    "extract-attributes": "Label every object easy or hard by the detector's success on it.",
    "train-generator": "Fine-tune the layout-conditioned diffusion model.",
    "synthesize": "Generate synthetic COCO data sets at the chosen difficulty.",
    "retrain": "Train detectors on real and on real + synthetic images.",
    "evaluate": "Measure fidelity and trainability and write the report.",
}
"""The groups of steps that users know, and what they do."""


def run_graph(config: RunConfig, digests: DigestMemory, missing: Collection[str] = ()) -> Graph:
    """Build the graph of a run.

    Args:
        missing: detectors, as `lost_detectors` names them, that the comparison is made without and
            says so.

    Raises:
        InvalidConfig: options do not go together, or a file cannot be read.
        PipelineError: what an option names outside of the store is not there.
    """
    try:
        _check(config, digests)
        graph = resolve(list(_nodes(config, missing)), digests)
    except OSError as error:
        raise InvalidConfig(f"{error.filename} cannot be read: {error.strerror}") from error
    _check_judge(config, graph)
    return graph


def outline(config: RunConfig) -> Graph:
    """The graph of a run without a look at any file: its keys are those of no artifact."""
    return resolve(list(_nodes(config, ())), None)


def lost_detectors(config: RunConfig, digests: DigestMemory, store: ArtifactStore) -> list[str]:
    """The detectors of the comparison that have no result, where it could be made without them.

    Returns:
        `detector/arm/seed` of each; none where something else is missing too, or all of them are.
    """
    graph = run_graph(config, digests)

    def is_there(name: str) -> bool:
        identity = graph.find(name).identity
        return store.has(identity.kind, identity.key)

    arms = list(arms_of(config.retrain))
    lost = [arm.place for arm in arms if not is_there(f"validate {arm.step}")]
    return lost if is_there("measure") and len(lost) < len(arms) else []


def idle_options(configs: Iterable[RunConfig]) -> list[str]:
    """Options that are given and that none of some runs uses, each with what it needs.

    Among them a rule for layouts, where the preset has another one for those of the training sets; that of
    the validation sets is the published protocol's.
    """
    used: dict[str, bool] = {}
    for config in configs:
        given = changes_to_preset(config)
        for name, (is_used, needed) in _uses(config).items():
            if _is_given(name, given):
                line = f"{name} has no effect without {needed}"
                used[line] = is_used or used.get(line, False)
        drawn = "synthesize.train_layouts"
        is_kept = config.synthesize.train_layouts != "run" and not _is_given(drawn, given)
        if is_kept and _is_given("layouts", given):
            used[f"layouts leaves {drawn} as the preset has it: change it too"] = False
    return [line for line, is_used in used.items() if not is_used]


def _is_given(name: str, given: Collection[str]) -> bool:
    """Whether an option, or one of a group, is among dotted names."""
    return any(f"{item}.".startswith(f"{name}.") for item in given)


def _uses(config: RunConfig) -> dict[str, tuple[bool, str]]:
    """Whether an option or a group of them is used, and what uses it."""
    retrain, pretraining = config.retrain, config.pretrain_generator
    is_pretrained = pretraining.num_steps > 0
    pseudo = "self-training" in retrain.arms or (is_pretrained and pretraining.boxes == "pseudo")
    mixed = any(map(is_mixed, retrain.arms)), "an arm with other images than the training images"
    real = any(arm.options.get("images") != "synthetic" for arm in arms_of(retrain))
    unlabelled = (
        is_pretrained or "self-training" in retrain.arms,
        "the arm self-training or pretrain_generator.num_steps",
    )
    spare = bool(spare_users(retrain)), "the arm more-real or a retrain.ruler above 1"
    return {
        "ingest.unlabelled": unlabelled,
        "ingest.scenes.num_unlabelled": unlabelled,
        "ingest.spare": spare,
        "ingest.scenes.num_spare": spare,
        "retrain.verification": (bool(training_policies(retrain)), "an arm with synthetic images"),
        "retrain.added_share": mixed,
        "retrain.real_only_end": mixed,
        "retrain.box_noise": (real, "an arm with real images"),
        "pseudo_labels": (pseudo, "the arm self-training or pretrain_generator.boxes=pseudo"),
        "pretrain_generator": (is_pretrained, "pretrain_generator.num_steps"),
        "train_generator.lora_learning_rate": (
            config.train_generator.lora_rank is not None,
            "train_generator.lora_rank",
        ),
    }


def stage_steps(graph: Graph, stage: str | None) -> list[Step]:
    """The steps of a stage, or of all.

    Raises:
        InvalidConfig: there is no such stage, or it has nothing to do.
    """
    if stage is not None and stage not in STAGES:
        raise InvalidConfig(
            f"unknown stage {stage!r}: choose one of {', '.join(STAGES)}{meant(stage, STAGES)}"
        )
    steps = graph.of_stage(stage) if stage else list(graph)
    if not steps:
        raise InvalidConfig(f"with these options the stage {stage} has nothing to do")
    return steps


def _check(config: RunConfig, digests: DigestMemory) -> None:
    """Refuse what options and files show to be impossible."""
    if config.execution.executor == "ray" and find_spec("ray") is None:
        raise InvalidConfig("execution.executor=ray needs: pip install '.[ray]'")
    splits = config.ingest.splits
    if not has_data(config):
        raise InvalidConfig(
            f"preset {config.preset} needs your data: give ingest.train and ingest.val, see README"
        )
    if config.ingest.tile and not splits and config.ingest.tile.size >= config.ingest.scenes.size:
        raise InvalidConfig(
            f"ingest.tile.size {config.ingest.tile.size} cuts no image of the embedded data set: give "
            "ingest.train and ingest.val, or a smaller one"
        )
    if config.synthesize.drawn_by == "scenes" and splits:
        raise InvalidConfig(
            "synthesize.drawn_by=scenes draws the embedded data set alone: leave ingest.train out, or draw "
            "with the generator"
        )
    if config.synthesize.class_policies:
        for split in splits.values():
            split.require_paths()
        check_classes(config.synthesize.class_policies, config.ingest.thing_names(digests))
    if config.synthesize.attribute_overrides and "origin" not in training_policies(config.retrain):
        raise InvalidConfig(
            "synthesize.attribute_overrides has effect on the arm real+origin alone: add it to retrain.arms"
        )
    if config.retrain.verification:
        _check_verification(config, config.retrain.verification)
    _check_spare(config)


def _check_spare(config: RunConfig) -> None:
    """Refuse what needs spare images where there are none, and a ruler that Scenes are too few for."""
    users, scenes = spare_users(config.retrain), config.ingest.scenes
    if users and not (config.ingest.spare if config.ingest.splits else scenes.num_spare):
        raise InvalidConfig(
            f"{users[0]} needs spare real images: give ingest.spare (of Scenes their number, "
            "ingest.scenes.num_spare), or leave it out"
        )
    if not config.ingest.splits and not config.ingest.tile:
        for multiple in config.retrain.ruler:
            require_real(multiple, scenes.num_train, scenes.num_spare)


def _check_verification(config: RunConfig, options: VerificationOptions) -> None:
    """Refuse a judge that cannot look at training sets, and a threshold below what is kept for it."""
    scoring, scorer = config.extract_attributes.scoring, config.evaluate.scorer
    if options.by == "detector" and scoring.results:
        raise InvalidConfig(
            "retrain.verification.by is detector, and extract_attributes.scoring.results are detections of "
            "other images: give scoring.detector, or take by=scorer"
        )
    if options.by == "scorer" and isinstance(scorer, ScorerResults):
        raise InvalidConfig(
            "retrain.verification.by is scorer, and evaluate.scorer has results of other sets: give a "
            "detector there and the results among evaluate.scorers, or take by=detector"
        )
    if options.score_threshold < scoring.score_threshold:
        raise InvalidConfig(
            f"retrain.verification.score_threshold {options.score_threshold:g} is below "
            f"extract_attributes.scoring.score_threshold {scoring.score_threshold:g}, under which detections "
            "of training images are not kept: lower the latter too"
        )


def _check_judge(config: RunConfig, graph: Graph) -> None:
    """Refuse a verification by a judge that is not the one that it is said to be."""
    if config.retrain.verification is None or config.retrain.verification.by != "scorer":
        return
    of_scorer, of_attributes = (
        _marks(graph.find(name).inputs.get("detector"))
        for name in (f"score real by {SCORER}", "detect val")
    )
    if of_scorer & of_attributes:
        raise InvalidConfig(
            "retrain.verification.by is scorer, and that is the detector that gives the attributes: "
            "give another one in evaluate.scorer, or say by=detector"
        )


def _marks(detector: Step | None) -> set[str]:
    """What a detector is known by: its artifact; of a given one its files, and the artifact that has them."""
    if detector is None:
        return set()
    marks = {detector.identity.reference}
    if isinstance(detector.options, DetectorSource):
        marks.add(" ".join(sorted(detector.identity.foreign.values())))
        source = detector.options.source
        artifact = source.folder.resolve().parent if isinstance(source, DetectorFolder) else None
        if artifact and artifact.parent.name in KINDS:
            marks.add(artifact_name(artifact))
    return marks


def _nodes(config: RunConfig, missing: Collection[str]) -> Iterator[Node]:
    yield Node(INGEST, "ingest", "ingest", ingest_options(config.ingest))
    detector, nodes = attribute_nodes(config)
    yield from nodes
    if config.evaluate.scorer is None:
        yield training_node(TRAINED_SCORER, "train-scorer", config.train_scorer)
    arms = [arm for arm in arms_of(config.retrain) if arm.place not in missing]
    yield from unlabelled_nodes(config, detector, {arm.name for arm in arms})
    yield from generator_nodes(config, detector)
    yield from training_set_nodes(config, detector)
    for arm in arms:  # the longest way to the end goes first
        yield from arm_nodes(config, arm)
    for policy in POLICIES:
        yield set_node(config, "val", policy)
    yield from fidelity_nodes(config, detector)
    yield comparison_node(config, arms, missing)
    yield report_node(config)
