"""Detectors of Darknet, against the same network computed by hand from the same weights."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from data.errors import InvalidConfig, InvalidDataset, InvalidModel
from models.detector.darknet import DarknetDetector
from models.detector.given_options import DARKNET_FILES, DarknetConfig
from models.detector.loading import load_detector

WIDTH, HEIGHT = 48, 32
ANCHORS = ((9, 14), (23, 17))
SCALE_X_Y = 1.2
CFG = f"""[net]
batch=64
# what it was trained with
#width=608
width = {WIDTH}
height = {HEIGHT}
channels=3

[convolutional]
batch_normalize=1
filters=4
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=14
size=3
stride=2
pad=1
activation=linear

[yolo]
mask = 0,1
anchors = {ANCHORS[0][0]}, {ANCHORS[0][1]}, {ANCHORS[1][0]}, {ANCHORS[1][1]}
classes=2
num=2
ignore_thresh = .7
scale_x_y = {SCALE_X_Y}
nms_kind=greedynms
"""
THINGS = {3: "cat", 9: "dog"}


@pytest.fixture(autouse=True)
def _opencv_4():
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip(f"OpenCV {cv2.__version__} does not read Darknet's format")


@dataclass(frozen=True)
class Weights:
    """Of the network of `CFG`, in the order of the file."""

    bias: torch.Tensor
    scale: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor
    kernel: torch.Tensor
    last_bias: torch.Tensor
    last_kernel: torch.Tensor


@pytest.fixture
def weights():
    random = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=random)

    variance = 0.5 + torch.rand(4, generator=random)
    first = (normal(4), normal(4), normal(4), variance, normal(4, 3, 3, 3))
    return Weights(*first, 2 * normal(14) - 1, normal(14, 4, 3, 3) / 2)


@pytest.fixture
def source(tmp_path, weights):
    """Options of a random network of two classes, one of them not of the data set."""
    (tmp_path / "tiny.cfg").write_text(CFG)
    (tmp_path / "tiny.names").write_text("dog\nhorse\n\n")
    with (tmp_path / "tiny.weights").open("wb") as file:
        np.array([0, 2, 5], "<i4").tofile(file)
        np.array([32_032_000], "<i8").tofile(file)  # images seen in training
        for name in Weights.__dataclass_fields__:
            getattr(weights, name).numpy().astype("<f4").tofile(file)
    return DarknetConfig(
        **{name: tmp_path / f"tiny.{name}" for name in ("cfg", "weights", "names")}
    )


def write_image(path, seed, repeats):
    """Write an image that shrinks to the network's input without a rounding error; return that."""
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels.repeat(repeats[0], axis=0).repeat(repeats[1], axis=1)).save(path)
    return pixels


@pytest.fixture
def images(tmp_path):
    """Ids and paths of images of several shapes."""
    found = []
    for seed, repeats in enumerate([(3, 1), (1, 1), (1, 3), (3, 3), (1, 5)]):
        write_image(tmp_path / f"{seed}.png", seed, repeats)
        found.append((seed + 10, tmp_path / f"{seed}.png"))
    return found


def outputs_by_hand(weights, pixels):
    """The last convolution's output (anchor, 4 + 1 + classes, row, column)."""
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    hidden = functional.conv2d(inputs, weights.kernel, stride=2, padding=1)
    columns = [part[:, None, None] for part in (weights.mean, weights.variance)]
    hidden = (hidden - columns[0]) / columns[1].sqrt()
    hidden = hidden * weights.scale[:, None, None] + weights.bias[:, None, None]
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
    last = functional.conv2d(hidden, weights.last_kernel, weights.last_bias, stride=2, padding=1)
    return last.reshape(2, 7, HEIGHT // 4, WIDTH // 4).numpy()


def sigmoid(values):
    return 1 / (1 + np.exp(-values.astype(np.float64)))


def found_by_hand(outputs, width, height):
    """Unclipped boxes in pixels, scores and labels of all above Darknet's cut-off, strongest first."""
    rows = []
    for (anchor, row, column), _ in np.ndenumerate(outputs[:, 0]):
        x, y, w, h, objectness, *classes = outputs[anchor, :, row, column]
        offset = (sigmoid(np.array([x, y])) - 0.5) * SCALE_X_Y + 0.5
        centre = (np.array([column, row]) + offset) / [WIDTH // 4, HEIGHT // 4] * [width, height]
        size = np.exp([w, h]) * ANCHORS[anchor] / [WIDTH, HEIGHT] * [width, height]
        for label, logit in enumerate(classes):
            score = sigmoid(objectness) * sigmoid(logit)
            if score > 0.005:
                rows.append((*(centre - size / 2), *(centre + size / 2), score, label))
    table = np.array(sorted(rows, key=lambda item: -item[4]))
    return table[:, :4], table[:, 4], table[:, 5].astype(int)


def iou(first, second):
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.maximum(high - low, 0))
    areas = [np.prod(box[2:] - box[:2]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def kept_by_hand(boxes, labels, threshold):
    kept = []
    for index, box in enumerate(boxes):
        rivals = [other for other in kept if labels[other] == labels[index]]
        if all(iou(box, boxes[other]) <= threshold for other in rivals):
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [1.0, 0.45, 0.2])
@pytest.mark.parametrize("repeats", [(3, 1), (1, 5)])
def test_detections_are_those_computed_by_hand(source, weights, tmp_path, threshold, repeats):
    pixels = write_image(tmp_path / "image.png", 7, repeats)
    height, width = HEIGHT * repeats[0], WIDTH * repeats[1]
    boxes, scores, labels = found_by_hand(outputs_by_hand(weights, pixels), width, height)
    kept = kept_by_hand(boxes, labels, threshold)
    assert (len(kept) < len(boxes)) == (threshold < 1)
    assert (scores < 0.2).any()  # where OpenCV would cut them off
    source = source.model_copy(update={"nms_iou_threshold": threshold})
    detector = DarknetDetector.from_source(source, THINGS)
    (found,) = detector.detect([(5, tmp_path / "image.png")], batch_size=1)
    assert found.image_id == 5
    np.testing.assert_allclose(found.scores, scores[kept], rtol=1e-4)
    clipped = boxes[kept].clip(0, [width, height, width, height])
    assert (clipped != boxes[kept]).any()
    np.testing.assert_allclose(found.boxes, clipped, rtol=1e-4, atol=1e-3)
    assert found.category_ids.tolist() == [(9, -1)[label] for label in labels[kept]]
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    assert found.category_ids.dtype == np.int64


def same(first, second):
    return all(
        (one.image_id, one.boxes.tolist(), one.scores.tolist(), one.category_ids.tolist())
        == (two.image_id, two.boxes.tolist(), two.scores.tolist(), two.category_ids.tolist())
        for one, two in zip(first, second, strict=True)
    )


def test_the_batch_size_has_no_effect(source, images):
    detector = DarknetDetector.from_source(source, THINGS)
    alone = [next(detector.detect([image], batch_size=1)) for image in images]
    assert [item.image_id for item in alone] == [10, 11, 12, 13, 14]
    assert len({item.boxes.tobytes() for item in alone}) == 5
    for batch_size in (2, 5, 8):
        assert same(detector.detect(images, batch_size), alone)


def test_a_folder_holds_all_that_the_detector_is(source, images, tmp_path):
    detector = DarknetDetector.from_source(
        source.model_copy(update={"nms_iou_threshold": 0.2}), THINGS
    )
    detector.save(tmp_path / "folder")
    for path in (source.cfg, source.weights, source.names):
        path.unlink()
    again = load_detector(tmp_path / "folder")
    assert isinstance(again, DarknetDetector)
    assert again.categories == detector.categories == ((9, "dog"), (-1, "horse"))
    assert same(again.detect(images, 2), detector.detect(images, 2))
    other = load_detector(tmp_path / "folder", {1: "horse"})
    assert other.categories == ((-1, "dog"), (1, "horse"))
    (tmp_path / "folder" / DARKNET_FILES[2]).unlink()
    with pytest.raises(InvalidModel, match="detector folder"):
        load_detector(tmp_path / "folder")


def test_classes_can_be_mapped(source):
    mapped = source.model_copy(update={"class_names": {"horse": "cat"}})
    assert DarknetDetector.from_source(mapped, THINGS).categories == ((9, "dog"), (3, "cat"))
    wrong = source.model_copy(update={"class_names": {"horse": "zebra"}})
    with pytest.raises(InvalidConfig, match="the data set has no class 'zebra'"):
        DarknetDetector.from_source(wrong, THINGS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names", "dog\n", "has 2 classes and was given 1 names"),
        ("names", "dog\nhorse\ncat\n", "has 2 classes and was given 3 names"),
        ("names", None, r"detector names .*tiny\.names"),
        ("weights", None, r"tiny\.cfg with .*tiny\.weights"),
        ("weights", "", r"tiny\.weights"),
        ("weights", "short", r"tiny\.weights"),
        ("cfg", None, r"tiny\.cfg is no Darknet cfg"),
        ("cfg", CFG.partition("[yolo]")[0], "no classes"),
        ("cfg", CFG.replace("channels=3", "channels=1"), "1 channels"),
        ("cfg", CFG.replace("[net]", "[other]"), "'width'"),
        ("cfg", CFG.replace("[convolutional]", "[no such layer]"), r"tiny\.cfg with"),
        ("cfg", CFG.replace("filters=4", "filters=5"), "they do not belong together"),
        ("cfg", CFG.replace("mask = 0,1", "mask = 0"), r"tiny\.cfg with .*region_layer"),
    ],
)
def test_files_that_make_no_detector_are_refused(source, name, content, message):
    path = getattr(source, name)
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InvalidModel, match=message):
        DarknetDetector.from_source(source, THINGS)


def test_weights_that_were_cut_short_are_refused(source):
    source.weights.write_bytes(source.weights.read_bytes()[:-4])
    with pytest.raises(InvalidModel, match=r"hold 641 numbers, and .*asks for 642"):
        DarknetDetector.from_source(source, THINGS)


def test_weights_of_the_first_darknet_count_images_in_four_bytes(source):
    content = source.weights.read_bytes()
    old = np.array([0, 1, 0, 7], "<i4").tobytes() + content[20:]
    detector = DarknetDetector.from_source(source, THINGS)
    source.weights.write_bytes(old)
    again = DarknetDetector.from_source(source, THINGS)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(image).save(source.cfg.parent / "black.png")
    batch = [(1, source.cfg.parent / "black.png")]
    assert same(again.detect(batch, 1), detector.detect(batch, 1))


def test_boxes_that_are_not_finite_are_left_out_with_a_warning(source, weights, tmp_path, caplog):
    content = np.fromfile(source.weights, np.uint8)
    last_bias = content[20:].view("<f4")[4 * 4 + weights.kernel.numel() :]
    last_bias[2] = 1000  # log of a width, of the first anchor
    content.tofile(source.weights)
    pixels = write_image(tmp_path / "image.png", 7, (1, 1))
    outputs = outputs_by_hand(weights, pixels)
    outputs[0, 4] = -100  # the first anchor finds nothing
    boxes, scores, labels = found_by_hand(outputs, WIDTH, HEIGHT)
    detector = DarknetDetector.from_source(source, THINGS)
    (found,) = detector.detect([(5, tmp_path / "image.png")], 1)
    np.testing.assert_allclose(found.scores, scores[kept_by_hand(boxes, labels, 0.45)], rtol=1e-4)
    assert caplog.messages == ["image 5: 96 boxes are not finite"]


def test_an_image_that_cannot_be_read_is_named(source, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    detector = DarknetDetector.from_source(source, THINGS)
    with pytest.raises(InvalidDataset, match=r"text\.png"):
        list(detector.detect([(1, tmp_path / "text.png")], 1))


def test_without_opencvs_reader_the_message_says_what_to_install(source, monkeypatch):
    monkeypatch.delattr(cv2.dnn, "readNetFromDarknet")
    with pytest.raises(InvalidModel, match=r"OpenCV .* cannot read .*pip install '\.\[darknet\]'"):
        DarknetDetector.from_source(source, THINGS)
