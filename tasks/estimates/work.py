"""What the steps of a run have to do: operations, images read and written, memory; from their options alone.

Rates of what no model does were measured on one core of a machine of 2 (the demo, nothing else running)
unless their docstring says otherwise; none on a GPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import cast

from data.ingest.options import IngestConfig
from data.layouts.options import Protocol
from data.vocabulary.splits import Split
from models.counts import (
    CountedModel,
    detector_model,
    find_count,
    generator_model,
)
from models.detector.given_options import CheckpointConfig, DetectionOptions, DetectorSource
from models.detector.options import DetectorConfig, DetectorTraining
from models.generator.drawing_options import SamplingConfig, SyntheticSetOptions
from models.generator.options import DECODER_BATCH_SIZE, GeneratorConfig, NewModelConfig
from models.metrics.options import FeatureOptions
from models.passes import ModelCount, Pass
from tasks.estimates import rates
from tasks.estimates.data_size import PNG_BYTES, DataSize
from tasks.execution.graph import Graph, Step


@dataclass(frozen=True, slots=True)
class Facts:
    """What a run's work depends on beside options.

    Attributes:
        data: by the reference of the step that ingests.
        counts: of models, by key.
    """

    data: Mapping[str, DataSize]
    counts: Mapping[str, ModelCount]


@dataclass(frozen=True, slots=True)
class _Passes:
    """Passes of models, added up.

    Attributes:
        flops: floating-point operations.
        memory_traffic: bytes that operators read and write in memory, in full precision.
        kernels: operators that are called.
    """

    flops: float = 0
    memory_traffic: float = 0
    kernels: float = 0

    def __add__(self, other: "_Passes") -> "_Passes":
        return _Passes(
            self.flops + other.flops,
            self.memory_traffic + other.memory_traffic,
            self.kernels + other.kernels,
        )


@dataclass(frozen=True, slots=True)
class Work(_Passes):
    """What a step has to do: passes of models, and all else.

    Attributes:
        core_seconds: of what no model does.
        read: bytes of image files.
        stored: bytes of the artifact.
        scratch: bytes of the work folder at most.
        memory: bytes of its process at the peak, where models are on a CPU.
        least_gpu_memory: bytes of a GPU that it needs at least, where that was counted.
    """

    core_seconds: float = 0
    read: float = 0
    stored: float = 0
    scratch: float = 0
    memory: float = rates.LIGHT_PROCESS_BYTES
    least_gpu_memory: float = 0


def _passes(of: Pass, num_images: float, batch_size: int) -> _Passes:
    """So many images, in batches."""
    count = max(num_images / batch_size, 1)
    traffic = num_images * of.bytes + count * of.fixed_bytes
    return _Passes(num_images * of.flops, traffic, count * of.kernels)


def work_of(step: Step, facts: Facts) -> Work | None:
    """What a step has to do; None where its model was not counted, or its kind has no formula.

    Linear in images and in steps of a training.
    """
    formula = _FORMULAS.get(step.kind.name)
    try:
        return formula(step, facts) if formula else None
    except _NotCounted:
        return None


def counted_models(graph: Graph) -> list[CountedModel]:
    """The models of a run."""
    found = (_model(step) for step in graph)
    return list(dict.fromkeys(model for model in found if model))


class _NotCounted(Exception):
    """A model is not among the counts."""


def _count(step: Step, facts: Facts) -> ModelCount:
    model = _model(step)
    count = find_count(model, facts.counts) if model else None
    if count is None:
        raise _NotCounted
    return count


def _model(step: Step) -> CountedModel | None:
    """The model that a step works with; a detector in another format is taken for Faster R-CNN."""
    options = step.options
    if isinstance(options, GeneratorConfig):
        return generator_model(options)
    if isinstance(options, DetectorTraining):
        return detector_model(options)
    if isinstance(options, DetectorSource):
        given = options.source
        named = {"config": given.config} if isinstance(given, CheckpointConfig) else {}
        return detector_model(DetectorConfig(**named))
    inputs = ("generator",) if step.kind.name == "synthesize" else ("detector",)
    return next((_model(step.inputs[name]) for name in inputs if name in step.inputs), None)


def _data(step: Step, facts: Facts) -> DataSize:
    """The data set that a step's real images or layouts are of."""
    if step.identity.reference in facts.data:
        return facts.data[step.identity.reference]
    name = next(name for name in ("set", "unlabelled", "ingest") if name in step.inputs)
    return _data(step.inputs[name], facts)


def _num_images(step: Step, facts: Facts) -> float:
    """Images that a step looks at: a set's, or a split's."""
    if "set" in step.inputs:
        return _num_drawn(step.inputs["set"], facts)
    images, options = (
        _data(step, facts).images,
        cast("DetectionOptions | FeatureOptions", step.options),
    )
    count = images.get(options.split, 0)
    fold = getattr(options, "fold", None)
    return count / fold.of if fold else count


def _num_drawn(step: Step, facts: Facts) -> float:
    """Images of a synthetic set."""
    options = cast("SyntheticSetOptions", step.options)
    there = _num_chosen(_data(step, facts), options.split, options.protocol)
    return (options.num_layouts or there) * options.images_per_layout


def _num_chosen(data: DataSize, split: Split, protocol: Protocol) -> float:
    """Images whose layout a protocol chooses, estimated: those with a thing, or COCO's share of 3 to 8."""
    images = data.images.get(split, 0)
    there = (
        images if data.layouts is None or not protocol.min_objects else data.layouts.get(split, 0)
    )
    if protocol.min_objects >= 3 and protocol.max_objects:
        return min(images * rates.CHOSEN_3_TO_8.get(split, 1.0), there)
    return there


def _seconds_to_read(count: float, pixels: float) -> float:
    return count * (rates.READ_SECONDS + pixels * rates.PIXEL_SECONDS)


def _ingest(step: Step, facts: Facts) -> Work:
    data = _data(step, facts)
    images = sum(data.images.values())
    objects = images * data.objects
    if data.is_drawn:
        return Work(
            core_seconds=images * data.pixels * rates.SCENE_PIXEL_SECONDS,
            stored=images * data.pixels * rates.SCENE_PNG + objects * rates.SCENE_OBJECT_BYTES,
        )
    options, whole = step.options, data.whole or data
    tile_pixels = images * data.pixels if data.whole else 0.0
    images = sum(whole.images.values())
    is_quick = isinstance(options, IngestConfig) and not (options.check_images or options.tile)
    looked_at = 0 if is_quick else images
    seconds = looked_at * rates.CHECK_SECONDS + images * whole.objects * rates.OBJECT_SECONDS
    read = looked_at * whole.file_bytes
    if data.whole:
        seconds += _seconds_to_read(images, whole.pixels) + tile_pixels * rates.TILE_PIXEL_SECONDS
    stored = objects * rates.OBJECT_BYTES + tile_pixels * PNG_BYTES
    return Work(core_seconds=seconds, read=read, stored=stored)


def _train_detector(step: Step, facts: Facts) -> Work:
    options = cast("DetectorTraining", step.options)
    data, count = _data(step.inputs["ingest"], facts), _count(step, facts)
    num_real = data.images["train"] * (1 - 1 / options.fold.of if options.fold else 1)
    iterations: float = options.iterations(round(num_real))
    if options.budget == "exposure":
        added = _num_drawn(step.inputs["synthetic"], facts)
        iterations *= 1 + options.added_per_real(round(num_real), round(added))
    images = iterations * options.batch_size
    passes = _passes(count.passes["train"], images, options.batch_size)
    passes += _updates(count, iterations)
    state = count.trained * rates.STATE_BYTES
    return Work(
        **asdict(passes),
        core_seconds=_seconds_to_read(images, data.pixels) + images * rates.LOSS_SECONDS,
        read=images * data.file_bytes,
        stored=count.parameters * rates.WEIGHT_BYTES,
        scratch=rates.CHECKPOINTS * count.trained * rates.CHECKPOINT_BYTES,
        memory=options.num_gpus * (rates.PROCESS_BYTES + state)
        + options.batch_size * count.passes["train"].held,
    )


def _updates(count: ModelCount, steps: float) -> _Passes:
    """What the optimiser does."""
    traffic = count.trained * rates.OPTIMIZER_BYTES
    return _Passes(0, steps * traffic, steps * count.tensors * rates.OPTIMIZER_KERNELS)


def _import_detector(step: Step, facts: Facts) -> Work:
    return Work(stored=_count(step, facts).parameters * rates.WEIGHT_BYTES)


def _detect(step: Step, facts: Facts) -> Work:
    options = cast("DetectionOptions", step.options)
    data, count, images = _data(step, facts), _count(step, facts), _num_images(step, facts)
    forward = count.passes["forward"]
    batch = min(options.batch_size, max(round(images), 1))
    kept = rates.STRONG_DETECTIONS_BYTES if options.score_threshold else rates.DETECTIONS_BYTES
    return Work(
        **asdict(_passes(forward, images, batch)),
        core_seconds=_seconds_to_read(images, data.pixels) + images * rates.FIND_SECONDS,
        read=images * data.file_bytes,
        stored=images * kept,
        memory=rates.PROCESS_BYTES + count.parameters * rates.WEIGHT_BYTES + batch * forward.held,
    )


def _of_detections(step: Step, facts: Facts) -> Work:
    """What somebody else found, or labels by what was found."""
    data = _data(step, facts)
    images = sum(data.images.values())
    return Work(
        core_seconds=images * rates.LABEL_SECONDS,
        stored=images * data.objects * rates.ATTRIBUTE_BYTES,
        memory=rates.PROCESS_BYTES,
    )


def _train_generator(step: Step, facts: Facts) -> Work:
    options = cast("GeneratorConfig", step.options)
    data, count = _data(step, facts), _count(step, facts)
    split: Split = "unlabelled" if "unlabelled" in step.inputs else "train"
    trained_on = _num_chosen(data, split, options.protocol)
    options = options.in_steps(round(trained_on))
    seen = options.num_steps * options.batch_size
    passes = _passes(count.passes["train"], seen, options.batch_size)
    passes += _updates(count, options.num_steps)
    encode, kept = count.passes["encode"], options.latents == "cached"
    encoded = 2 * trained_on if kept else seen
    passes += _passes(encode, encoded, options.batch_size)
    if isinstance(options.base_model, NewModelConfig) and "pretrained" not in step.inputs:
        learnt = rates.BACKWARD_TOO * options.base_model.decoder_steps * DECODER_BATCH_SIZE
        passes += _passes(count.passes["decode"], learnt, DECODER_BATCH_SIZE)
    if options.probe.interval:
        drawn = options.num_steps // options.probe.interval * options.probe.num_layouts
        passes += _drawing(count, drawn, options.probe.sampling)
    pixels = options.resolution**2
    latents = encoded * _latent_bytes(options) if kept else 0
    frozen = count.frozen * rates.WEIGHT_BYTES
    state = count.trained * rates.STATE_BYTES + frozen
    saved = rates.SAVED_BY_8_BITS if options.optimizer == "adamw-8bit" else 0
    average = 0 if options.ema_decay is None else rates.WEIGHT_BYTES
    kept_bytes = rates.CHECKPOINT_BYTES - saved + average
    return Work(
        **asdict(passes),
        core_seconds=_seconds_to_read(encoded / 2, data.pixels) + seen * rates.BATCH_SECONDS,
        read=encoded / 2 * data.file_bytes,
        stored=count.parameters * rates.WEIGHT_BYTES + 64 * pixels * PNG_BYTES,
        scratch=rates.CHECKPOINTS * (count.trained * kept_bytes + frozen) + latents,
        memory=options.num_gpus * (rates.PROCESS_BYTES + state)
        + options.batch_size * count.passes["train"].held,
        least_gpu_memory=count.least_gpu_memory - saved * count.trained,
    )


def _latent_bytes(options: GeneratorConfig) -> float:
    """Of mean and variance of an image's latent, float32: 8 × 8 cells of Stable Diffusion, 4 channels."""
    new = options.base_model
    cells, channels = (8, 4) if isinstance(new, str) else (new.patch_size, new.latent_channels)
    return 4 * 2 * channels * (options.resolution / cells) ** 2


def _drawing(
    count: ModelCount, images: float, sampling: SamplingConfig, strength: float = 1
) -> _Passes:
    """Images, each computed with and without its layout."""
    batch, predicted = sampling.batch_size, 2 * images * sampling.num_steps(strength)
    passes = _passes(count.passes["forward"], predicted, 2 * batch)
    passes += _passes(count.passes["text"], 2 * images, 2 * batch)
    return passes + _passes(count.passes["decode"], images, batch)


def _synthesize(step: Step, facts: Facts) -> Work:
    options = cast("SyntheticSetOptions", step.options)
    data, images = _data(step, facts), _num_drawn(step, facts)
    if options.drawn_by == "scenes":
        stored = images * (data.pixels * rates.SCENE_PNG + data.objects * rates.OBJECT_BYTES)
        seconds = images * data.pixels * rates.SCENE_PIXEL_SECONDS
        return Work(core_seconds=seconds, stored=stored, memory=rates.PROCESS_BYTES)
    count = _count(step, facts)
    resolution = cast("GeneratorConfig", step.inputs["generator"].options).resolution
    pixels = data.pixels if options.image_size == "source" else min(resolution**2, data.pixels)
    batch = min(options.sampling.batch_size, max(round(images), 1))
    held = 2 * batch * count.passes["forward"].held
    return Work(
        **asdict(_drawing(count, images, options.sampling, options.strength)),
        core_seconds=_seconds_to_read(images, pixels),
        stored=images * (pixels * PNG_BYTES + data.objects * rates.OBJECT_BYTES),
        memory=rates.PROCESS_BYTES + count.parameters * rates.WEIGHT_BYTES + held,
    )


def _image_features(step: Step, facts: Facts) -> Work:
    options = cast("FeatureOptions", step.options)
    data, images = _data(step, facts), _num_images(step, facts)
    images *= 1 + options.mirrored
    return Work(
        flops=images * _extractor_flops(options),
        core_seconds=_seconds_to_read(images, data.pixels),
        read=images * data.file_bytes,
        stored=images * rates.FEATURE_BYTES[options.extractor],
        memory=rates.PROCESS_BYTES,
    )


def _extractor_flops(options: FeatureOptions) -> float:
    """Of an image; the random network has 3 × 3 convolutions to 27, 32 and 64 channels, halved between."""
    if options.extractor == "inception":
        return rates.INCEPTION_FLOPS
    return 2 * 9 * options.resolution**2 * (3 * 27 + 27 * 32 / 4 + 32 * 64 / 16)


def _of_labels(step: Step, facts: Facts) -> Work:
    """Tables of labels of a set: verified, or pseudo-labels."""
    images = _num_images_of_labels(step, facts)
    stored = images * _data(step, facts).objects * rates.OBJECT_BYTES
    return Work(core_seconds=images * rates.LABEL_SECONDS, stored=stored)


def _num_images_of_labels(step: Step, facts: Facts) -> float:
    if "set" in step.inputs:
        return _num_drawn(step.inputs["set"], facts)
    return sum(_data(step, facts).images.values())


def _measure(step: Step, facts: Facts) -> Work:
    scored = [item for name, item in step.inputs.items() if name.startswith("scores/")]
    images = sum(_num_images(item, facts) for item in scored)
    return Work(core_seconds=images * rates.MEASURE_SECONDS, stored=rates.TABLES_BYTES)


def _compare(step: Step, facts: Facts) -> Work:
    found = [item for name, item in step.inputs.items() if name.startswith("found/")]
    images = sum(_num_images(item, facts) for item in found)
    return Work(core_seconds=images * rates.COMPARE_SECONDS, stored=rates.TABLES_BYTES)


def _pages(step: Step, facts: Facts) -> Work:
    """A page with pictures."""
    return Work(core_seconds=rates.REPORT_SECONDS, stored=rates.REPORT_BYTES)


_FORMULAS: Mapping[str, Callable[[Step, Facts], Work]] = {
    "ingest": _ingest,
    "ingest-unlabelled": _ingest,
    "train-detector": _train_detector,
    "import-detector": _import_detector,
    "detect": _detect,
    "import-detections": _of_detections,
    "label-attributes": _of_detections,
    "pseudo-label": _of_labels,
    "train-generator": _train_generator,
    "synthesize": _synthesize,
    "verify-set": _of_labels,
    "image-features": _image_features,
    "measure": _measure,
    "compare": _compare,
    "report": _pages,
    "conclude": _pages,
}
"""By kind."""
