import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision.ops import box_iou

from data.vocabulary.boxes import area, iou, mask_to_box, xywh_to_xyxy, xyxy_to_xywh

UNIT = np.array([0, 0, 1, 1])

coordinates = st.floats(0, 1000, width=32)
boxes_xywh = st.integers(1, 6).flatmap(
    lambda count: arrays(np.float64, (count, 4), elements=coordinates)
)


@given(boxes_xywh)
def test_conversion_round_trips(boxes):
    np.testing.assert_allclose(xyxy_to_xywh(xywh_to_xyxy(boxes)), boxes, atol=1e-9)


@given(boxes_xywh, boxes_xywh)
def test_iou_equals_torchvision(first, second):
    first, second = xywh_to_xyxy(first + UNIT), xywh_to_xyxy(second + UNIT)
    expected = box_iou(torch.from_numpy(first), torch.from_numpy(second)).numpy()
    np.testing.assert_allclose(iou(first, second), expected, atol=1e-12)


def test_iou_of_empty_boxes_is_zero():
    empty = np.zeros((1, 4))
    assert iou(empty, empty).tolist() == [[0.0]]


def test_inverted_boxes_have_no_area():
    assert area(np.array([5.0, 5, 1, 1])) == 0


def test_mask_to_box_is_half_open():
    mask = np.zeros((5, 6), dtype=bool)
    mask[1:3, 2:5] = True
    assert mask_to_box(mask).tolist() == [2, 1, 5, 3]


def test_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="no foreground"):
        mask_to_box(np.zeros((2, 2), dtype=bool))
