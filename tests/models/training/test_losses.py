import pytest
import torch

from models.training.losses import (
    denoising_loss,
    dice_loss,
    foreground_weights,
    mask_iou,
    mask_loss,
    min_snr_weights,
    perception_loss,
)


def dice_of_logits(logits, target, valid):
    return dice_loss(logits.sigmoid(), target, valid)


def slow_weights(boxes, foreground, height, width, weight, power):
    """The smallest box that a cell's centre lies in."""
    raw = [[(height * width) ** -power] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            sizes = [
                (bottom - top + 1) * (right - left + 1)
                for (left, top, right, bottom), is_foreground in zip(boxes, foreground, strict=True)
                if is_foreground and left <= x + 0.5 < right and top <= y + 0.5 < bottom
            ]
            if sizes:
                raw[y][x] = weight / min(sizes) ** power
    return normalized(raw)


def painted_weights(boxes, foreground, height, width, weight, power):
    """GeoDiffusion's released data set: boxes of whole cells, painted one over the other."""
    raw = [[0.0] * width for _ in range(height)]
    for box, is_foreground in zip(boxes, foreground, strict=True):
        left, top, right, bottom = map(round, box)
        for y in range(top, bottom) if is_foreground else ():
            for x in range(left, right):
                raw[y][x] = weight / ((bottom - top + 1) * (right - left + 1)) ** power
    background = (height * width) ** -power
    return normalized([[value or background for value in row] for row in raw])


def normalized(raw):
    mean = sum(map(sum, raw)) / sum(map(len, raw))
    return [[value / mean for value in row] for row in raw]


@pytest.mark.parametrize(
    ("overlap", "slow"), [("smallest", slow_weights), ("last", painted_weights)]
)
def test_foreground_weights_equal_a_slow_loop(overlap, slow):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 4, 2, 2, generator=generator) * 6
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=2)
    foreground = torch.tensor([[True, True, False, True]] * 3)
    fast = foreground_weights(boxes, foreground, 6, 8, 2.0, 0.2, overlap)
    for row in range(3):
        expected = slow(boxes[row].tolist(), foreground[row].tolist(), 6, 8, 2.0, 0.2)
        torch.testing.assert_close(fast[row], torch.tensor(expected))


def test_where_boxes_overlap_the_smallest_wins():
    boxes = torch.tensor([[[0.0, 0, 4, 4], [1.0, 1, 2, 2]]])
    weights = foreground_weights(boxes, torch.tensor([[True, True]]), 4, 4)[0]
    assert weights[1, 1] == weights.max()
    assert weights[0, 0] < weights[1, 1]


def test_without_foreground_all_cells_weigh_one():
    weights = foreground_weights(torch.zeros(1, 2, 4), torch.tensor([[False, False]]), 3, 3)
    torch.testing.assert_close(weights, torch.ones(1, 3, 3))


def test_denoising_loss_by_hand():
    prediction, target = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 2.0]]], [[[3.0, 0.0]]]])
    cells = torch.tensor([[[0.5, 1.5]], [[1.0, 1.0]]])
    loss = denoising_loss(prediction, target, cells, torch.tensor([1.0, 2.0]))
    assert loss.item() == pytest.approx(((0.5 * 1 + 1.5 * 4) / 2 + 2 * (9 + 0) / 2) / 2)


@pytest.mark.parametrize(("kind", "expected"), [("epsilon", 5 / 9), ("v_prediction", 0.5)])
def test_min_snr_weights_by_hand(kind, expected):
    weights = min_snr_weights(torch.tensor([0.9]), 5.0, kind)
    assert weights.item() == pytest.approx(expected)


def test_perfect_masks_cost_nothing_and_wrong_ones_do():
    target = torch.zeros(1, 1, 4, 4)
    target[..., :2] = 1
    valid = torch.tensor([[True]])
    logits = (target * 2 - 1) * 50
    for loss in (mask_loss, dice_of_logits):
        assert loss(logits, target, valid).item() == pytest.approx(0, abs=1e-6)
        assert loss(-logits, target, valid).item() > 0.8
    assert mask_iou(logits > 0, target, valid) == 1
    assert mask_iou(logits < 0, target, valid) == 0


def test_dice_by_hand():
    target = torch.tensor([[[[1.0, 0.0]]]])
    probability = torch.full((1, 1, 1, 2), 0.5)
    expected = 1 - (2 * 0.5 + 1) / (1.0 + 1.0 + 1)
    assert dice_loss(probability, target, torch.tensor([[True]])).item() == pytest.approx(expected)


def test_objects_that_are_padding_do_not_count():
    logits, target = torch.randn(1, 2, 3, 3), torch.rand(1, 2, 3, 3).round()
    one = torch.tensor([[True, False]])
    for loss in (mask_loss, dice_of_logits):
        alone = loss(logits[:, :1], target[:, :1], one[:, :1])
        torch.testing.assert_close(loss(logits, target, one), alone)
        assert loss(logits, target, torch.tensor([[False, False]])).item() == 0


def test_noisy_steps_are_discounted():
    masks, dice = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0])
    loss = perception_loss(masks, dice, torch.tensor([1.0, 0.0]))
    assert loss.item() == pytest.approx((2 + 0) / 2)
