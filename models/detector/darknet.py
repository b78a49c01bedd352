"""Detectors in Darknet's format (YOLOv3, YOLOv4 and their kin), run by OpenCV 4 on the CPU.

Such a detector's folder has `model.cfg`, `model.weights` and `detector.json` (the categories and the
threshold of the non-maximum suppression).
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from data.errors import InvalidModel
from data.vocabulary.images import read_rgb
from models.detector.classes import categories_by_name
from models.detector.detector import Detections
from models.detector.given_options import DARKNET_FILES, DarknetConfig
from models.detector.overlaps import suppress_overlaps

logger = logging.getLogger(__name__)

_CFG, _WEIGHTS, _FACTS = DARKNET_FILES

_MIN_SCORE = 0.005
"""Where Darknet's own evaluation (`detector map`, `detector valid`) cuts detections off."""

_VERSION = 3 * 4
"""Bytes at the start of a weights file: major, minor, revision; the count of images seen follows."""

_WITH_WEIGHTS = ("Convolution", "BatchNorm", "InnerProduct")
"""OpenCV's layers whose blobs come from the weights file."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a Darknet cfg: `[kind]` and the options under it."""

    kind: str
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is known of a network from its cfg.

    Attributes:
        width: of the input, in pixels.
        height: likewise.
        num_classes: of every [yolo] layer.
        text: the cfg for OpenCV, whose [yolo] layers leave the suppression of overlaps to us.
    """

    width: int
    height: int
    num_classes: int
    text: str


@dataclass(frozen=True, slots=True)
class _Picture:
    """An image as the network takes it, and its own size in pixels."""

    blob: np.ndarray
    width: int
    height: int


def read_sections(text: str) -> list[Section]:
    r"""Split a cfg into its parts; of an option given twice the last counts, as in OpenCV.

    >>> read_sections("[net]\nwidth = 416 \n# a comment\n[yolo]")
    [Section(kind='net', options={'width': '416'}), Section(kind='yolo', options={})]
    """
    sections: list[Section] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            sections.append(Section(line[1:].partition("]")[0], {}))
        elif sections and line and line[0] not in "#;":
            name, _, value = line.partition("=")
            sections[-1].options[name.strip()] = value.strip()
    return sections


def read_architecture(cfg: Path) -> Architecture:
    """Read a cfg.

    Raises:
        InvalidModel: it cannot be read, or is not of a detector with [yolo] layers for RGB images.
    """
    try:
        sections = read_sections(cfg.read_text(encoding="utf-8-sig", errors="replace"))
        net = next((section.options for section in sections if section.kind == "net"), {})
        width, height = (int(net[name]) for name in ("width", "height"))
        num_channels = int(net.get("channels", "3"))
        num_classes = {int(part.options["classes"]) for part in sections if part.kind == "yolo"}
    except (OSError, KeyError, ValueError) as error:
        raise InvalidModel(
            f"{cfg} is no Darknet cfg with the input's size in [net] and classes in [yolo]: {error!r}"
        ) from error
    if len(num_classes) != 1 or num_channels != 3:
        raise InvalidModel(
            f"{cfg} is of no detector for RGB images with [yolo] layers of the same classes: "
            f"{num_channels} channels, {sorted(num_classes) or 'no'} classes"
        )
    return Architecture(width, height, num_classes.pop(), _text_for_opencv(sections))


def _text_for_opencv(sections: Sequence[Section]) -> str:
    """The cfg with [yolo] layers that keep weak and overlapping detections.

    Of itself OpenCV cuts them off at 0.2, which would make average precision another quantity.
    """
    ours = {"thresh": str(_MIN_SCORE), "nms_threshold": "0"}
    lines: list[str] = []
    for section in sections:
        options = section.options | (ours if section.kind == "yolo" else {})
        lines += [f"[{section.kind}]", *(f"{name}={value}" for name, value in options.items())]
    return "\n".join(lines) + "\n"


def read_network(cfg: Path, weights: Path, architecture: Architecture) -> Any:
    """Read a network with its weights.

    Args:
        cfg: for the messages.

    Raises:
        InvalidModel: the files cannot be read or do not belong together, or OpenCV is without the
            reader of Darknet's format.
    """
    read = getattr(cv2.dnn, "readNetFromDarknet", None)
    if read is None:
        raise InvalidModel(
            f"{cfg}: OpenCV {cv2.__version__} cannot read detectors of Darknet, OpenCV 4 can: "
            "pip install '.[darknet]'"
        )
    try:
        content = np.fromfile(weights, np.uint8)
        network = read(np.frombuffer(architecture.text.encode(), np.uint8), content)
        network.getFLOPS([1, 3, architecture.height, architecture.width])  # checks all shapes
        given, wanted = _num_given(content), _num_wanted(network)
    except (OSError, cv2.error) as error:
        raise InvalidModel(f"detector {cfg} with {weights}: {error}") from error
    if given != wanted:  # OpenCV would fill what is missing with whatever lies in memory
        raise InvalidModel(
            f"detector weights {weights} hold {given} numbers, and {cfg} asks for {wanted}: "
            "they do not belong together, or the file is cut short"
        )
    network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    network.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
    return network


def _num_given(weights: np.ndarray) -> int:
    """How many float32 a weights file has after its header."""
    if len(weights) < _VERSION:
        return 0
    major, minor, _ = weights[:_VERSION].view("<i4").tolist()
    seen = 8 if major * 10 + minor >= 2 else 4
    return (len(weights) - _VERSION - seen) // 4


def _num_wanted(network: Any) -> int:
    layers = [network.getLayer(name) for name in network.getLayerNames()]
    return sum(blob.size for layer in layers if layer.type in _WITH_WEIGHTS for blob in layer.blobs)


def read_names(path: Path) -> list[str]:
    """Read class names, one a line.

    Raises:
        InvalidModel: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"detector names {path}: {error}") from error
    return [name for line in lines if (name := line.strip())]


def candidates(
    rows: Float[Tensor, "num_rows 5+num_classes"], width: int, height: int
) -> tuple[
    Float[Tensor, "num_candidates 4"],
    Float[Tensor, " num_candidates"],
    Int[Tensor, " num_candidates"],
]:
    """Take boxes, scores and labels from the output of OpenCV's [yolo] layers.

    Args:
        rows: centre, width and height relative to the image, objectness, and for each class its
            probability times objectness, 0 where that was cut off.
        width: of the image, in pixels.
        height: likewise.
    """
    places, labels = rows[:, 5:].nonzero(as_tuple=True)
    boxes_cxcywh = rows[places, :4] * rows.new_tensor([width, height, width, height])
    return box_convert(boxes_cxcywh, "cxcywh", "xyxy"), rows[places, 5 + labels], labels


class DarknetDetector:
    """A detector in Darknet's format, ready for inference.

    Args:
        categories: COCO category id and name, in label order.
        nms_iou_threshold: of two boxes of a class that overlap more, the weaker one is dropped.

    Raises:
        InvalidModel: a file is missing or cannot be read, the two do not belong together, or there
            are not as many categories as classes.
    """

    def __init__(
        self,
        cfg: Path,
        weights: Path,
        categories: Sequence[tuple[int, str]],
        nms_iou_threshold: float,
    ):
        self._files = (cfg, weights)
        self._architecture = read_architecture(cfg)
        if len(categories) != self._architecture.num_classes:
            raise InvalidModel(
                f"detector {cfg} has {self._architecture.num_classes} classes and was given "
                f"{len(categories)} names"
            )
        cv2.setNumThreads(torch.get_num_threads())  # it has threads of its own, as many as cores
        self._network = read_network(cfg, weights, self._architecture)
        self._outputs = self._network.getUnconnectedOutLayersNames()
        self._nms_iou_threshold = nms_iou_threshold
        self._category_ids = np.array([category_id for category_id, _ in categories], np.int64)
        self.categories = tuple(categories)

    @classmethod
    def from_source(cls, source: DarknetConfig, things: Mapping[int, str]) -> "DarknetDetector":
        """Load cfg, weights and names.

        Args:
            things: category id to name of the data set; a class of the detector that is not among
                them is reported as `UNKNOWN_CLASS`.

        Raises:
            InvalidModel: as the constructor does, or the names cannot be read.
            InvalidConfig: the mapping of class names has one that is not there.
        """
        categories = categories_by_name(read_names(source.names), things, source.class_names)
        return cls(source.cfg, source.weights, categories, source.nms_iou_threshold)

    @classmethod
    def load(cls, folder: Path, things: Mapping[int, str] | None = None) -> "DarknetDetector":
        """Load a folder written by `save`.

        Args:
            things: category id to name of another data set than the detector's, whose ids it is to
                report; a class not among them is reported as `UNKNOWN_CLASS`.

        Raises:
            InvalidModel: a file is missing or damaged.
        """
        try:
            facts = json.loads((folder / _FACTS).read_text())
            categories = [(key, name) for key, name in facts["categories"]]
            threshold = float(facts["nms_iou_threshold"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InvalidModel(f"detector folder {folder}: {error}") from error
        if things:
            categories = categories_by_name([name for _, name in categories], things)
        return cls(folder / _CFG, folder / _WEIGHTS, categories, threshold)

    def save(self, folder: Path) -> None:
        """Write the folder that `load` reads: `model.cfg`, `model.weights` and `detector.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        for path, name in zip(self._files, (_CFG, _WEIGHTS), strict=True):
            shutil.copyfile(path, folder / name)
        facts = {"categories": self.categories, "nms_iou_threshold": self._nms_iou_threshold}
        (folder / _FACTS).write_text(json.dumps(facts))

    def detect(self, images: Sequence[tuple[int, Path]], batch_size: int) -> Iterator[Detections]:
        """Detect objects in image files.

        Args:
            images: COCO image id and path of each image.
            batch_size: images that are read ahead; a CPU gains nothing from running them together.

        Yields:
            One `Detections` per image, in order.

        Raises:
            InvalidDataset: an image cannot be read.
        """
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), batch_size):
                batch = images[start : start + batch_size]
                pictures = pool.map(self._read, [path for _, path in batch])
                for (image_id, _), picture in zip(batch, pictures, strict=True):
                    yield self._detections(image_id, picture)

    def _read(self, path: Path) -> _Picture:
        """Stretch an image to the network's input, as OpenCV's YOLO and Darknet's evaluation do."""
        pixels = np.asarray(read_rgb(path))
        size = (self._architecture.width, self._architecture.height)
        blob = cv2.dnn.blobFromImage(pixels, scalefactor=1 / 255, size=size)
        return _Picture(blob, width=pixels.shape[1], height=pixels.shape[0])

    def _detections(self, image_id: int, picture: _Picture) -> Detections:
        self._network.setInput(picture.blob)
        rows = torch.from_numpy(np.concatenate(self._network.forward(self._outputs)))
        finite = rows.isfinite().all(dim=1)
        if not finite.all():
            logger.warning("image %d: %d boxes are not finite", image_id, (~finite).sum())
        boxes, scores, labels = candidates(rows[finite], picture.width, picture.height)
        kept = suppress_overlaps(boxes, scores, labels, self._nms_iou_threshold)
        return Detections(
            image_id,
            clip_boxes_to_image(boxes[kept], (picture.height, picture.width)).numpy(),
            scores[kept].numpy(),
            self._category_ids[labels[kept].numpy()],
        )
