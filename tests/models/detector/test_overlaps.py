import torch

from models.detector.overlaps import suppress_overlaps


def test_boxes_of_two_classes_never_suppress_each_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [-11, -11, -1, -1], [1, 0, 10, 10], [0, 0, 10, 10]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 1, 0, 1])
    assert suppress_overlaps(boxes, scores, labels, 0.45).tolist() == [0, 1, 3]
    assert suppress_overlaps(boxes[:0], scores[:0], labels[:0], 0.45).tolist() == []


def test_of_equal_scores_the_earlier_stays():
    boxes, labels = torch.tensor([[0.0, 0, 10, 8], [0, 0, 10, 10]]), torch.tensor([3, 3])
    for order in ([0, 1], [1, 0]):
        assert suppress_overlaps(boxes[order], torch.ones(2), labels, 0.45).tolist() == [0]
