"""Progress over the images of several files."""

from collections.abc import Iterable

from data.coco.records import AnyRecord, decode_span
from data.coco.stream import CocoIndex, UnprovenIndex
from data.progress import Progress


class ImageProgress:
    """Counts images done against those that the files name."""

    def __init__(self, on_progress: Progress):
        self._on_progress = on_progress
        self._done = self._total = 0

    def expect(self, split: Iterable[CocoIndex]) -> None:
        """Expect the images of a split, whose files name much the same images."""
        self._total += max(map(_count_images, split), default=0)

    def advance(self, count: int) -> None:
        """Report that `count` more images are done."""
        self._done += count
        self._on_progress(self._done, max(self._total, self._done), "images")


def _count_images(index: CocoIndex) -> int:
    try:
        spans = index.spans["images"]
        return sum(len(decode_span(index.path, span, AnyRecord)) for span in spans)
    except UnprovenIndex:
        return 0  # it will be read another way, and counted then
