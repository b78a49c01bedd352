"""One detection of each object: non-maximum suppression."""

from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms


def suppress_overlaps(
    boxes: Float[Tensor, "num_candidates 4"],
    scores: Float[Tensor, " num_candidates"],
    labels: Int[Tensor, " num_candidates"],
    iou_threshold: float,
) -> Int[Tensor, " num_kept"]:
    """Suppress overlaps within each class; the strongest come first, of equal scores the earlier."""
    if not len(boxes):
        return labels
    # torchvision moves classes apart by the largest coordinate, which needs coordinates from 0 on.
    return batched_nms(boxes - boxes.min(), scores, labels, iou_threshold)
