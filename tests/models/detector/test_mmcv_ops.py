import pytest
import torch
from torchvision.ops import box_iou

from models.detector import mmcv_ops

mmcv_ops.install_mmcv_ops()

from mmcv.ops import nms, roi_align, sigmoid_focal_loss  # noqa: E402  # needs the line above


def test_nms_keeps_a_maximal_set_of_boxes_that_do_not_overlap():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(60, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 1 + torch.rand(60, 2, generator=generator) * 10], dim=1)
    scores = torch.rand(60, generator=generator)
    kept = nms(boxes, scores, 0.5)[1]
    overlaps = box_iou(boxes, boxes)
    assert (overlaps[kept][:, kept].fill_diagonal_(0) <= 0.5).all()
    for index in set(range(60)) - set(kept.tolist()):
        better = [k for k in kept.tolist() if scores[k] > scores[index]]
        assert (overlaps[index, better] > 0.5).any()


def test_roi_align_of_a_plane_is_the_plane_at_the_bin_centres():
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    features = (2 * x + 3 * y + 1)[None, None].requires_grad_()
    rois = torch.tensor([[0, 2.5, 4.5, 10.5, 8.5]])
    pooled = roi_align(features, rois, (2, 4), 1.0, 2, "avg", True)
    centres_x, centres_y = torch.tensor([3.0, 5, 7, 9]), torch.tensor([5.0, 7])
    expected = 2 * centres_x[None] + 3 * centres_y[:, None] + 1
    torch.testing.assert_close(pooled[0, 0], expected)


def test_roi_align_has_the_gradient_of_finite_differences():
    features = torch.rand(1, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.2, 0.7, 4.6, 5.1]], dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: roi_align(x, rois, 2, 1.0, 2, "avg", True), features)


def test_roi_align_has_its_gradient_in_bfloat16_too():
    features = torch.rand(1, 2, 6, 6, requires_grad=True)
    rois = torch.tensor([[0, 1.25, 0.75, 4.5, 5.0]])
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            pooled = roi_align(features.to(dtype), rois.to(dtype), 2, 1.0, 2, "avg", True)
        gradients += torch.autograd.grad(pooled.float().square().sum(), features)
    torch.testing.assert_close(*gradients, rtol=0.02, atol=0.02)


def test_focal_loss_is_its_formula_and_has_its_gradient():
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 2, 3, 1, 3])
    loss = sigmoid_focal_loss(logits, target, 2.0, 0.25, None, "none")
    for row in range(5):
        for column in range(3):
            p = torch.sigmoid(logits[row, column])
            positive = target[row] == column
            expected = -0.25 * (1 - p) ** 2 * p.log() if positive else -0.75 * p**2 * (1 - p).log()
            torch.testing.assert_close(loss[row, column], expected)
    torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, target, 2.0, 0.25, None, "sum"), logits
    )


def test_an_operator_that_is_not_there_says_what_to_install():
    with pytest.raises(NotImplementedError, match="pip install mmcv"):
        mmcv_ops._OperatorModule("x").deform_conv_forward()
