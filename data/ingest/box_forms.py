"""Whether the boxes of a file look like another form than [x, y, width, height] in pixels."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from data.errors import InvalidDataset
from data.ingest.annotations import BOX_CLIPPED, BOX_OUTSIDE, ObjectRows
from data.vocabulary.tables import box_array

_NEARLY_ALL = 0.9
"""Of the boxes, that lie between 0 and 1 where they are shares."""

_FEW_PIXELS = 4
"""Side of images whose boxes may well lie there."""

_MANY = 1 / 3
"""Of the boxes, above which so many reach out of their images that they may be corners."""


class BoxForms:
    """Counts the boxes of a file that look like shares of the image, and those that reach out of it.

    Args:
        name: of the file, for messages.
    """

    def __init__(self, name: str):
        self._name = name
        self._total = self._shares = self._beyond = 0

    def add(self, rows: ObjectRows) -> None:
        """Count the boxes of a chunk."""
        reasons = Counter(reason for reason, _ in rows.offences)
        boxes = box_array(rows.batch)
        within = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]]) <= 1
        self._total += len(boxes) + reasons[BOX_OUTSIDE]
        self._shares += int(within.all(axis=1).sum())
        self._beyond += reasons[BOX_OUTSIDE] + reasons[BOX_CLIPPED]

    def require_pixels(self, sizes: np.ndarray) -> None:
        """Refuse shares of the image.

        Args:
            sizes: of the images, (num_images, 2).

        Raises:
            InvalidDataset: nearly all boxes look like them.
        """
        are_shares = self._shares and self._shares >= _NEARLY_ALL * self._total
        if are_shares and np.median(sizes) > _FEW_PIXELS:
            raise InvalidDataset(
                f"{self._name}: boxes look like shares of the image, {self._shares} of {self._total} lie "
                "between 0 and 1: they are [x, y, width, height] in pixels"
            )

    def warnings(self) -> Iterator[str]:
        """What a user should know."""
        if self._beyond > _MANY * self._total:
            yield (
                f"{self._name}: {self._beyond} of {self._total} boxes reach out of their images: "
                "boxes may be corners, [x1, y1, x2, y2], and are to be [x, y, width, height]"
            )
