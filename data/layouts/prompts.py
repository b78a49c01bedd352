"""Layouts as text: GeoDiffusion's prompt with DetDiffusion's attribute tokens.

`An image with {class} <l_a> <l_b> <easy> {class} <l_c> <l_d> …`: one location token for the grid cell
of the top-left corner, one for the bottom-right, then the attribute (paper section 3.2, [G], [D]).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.errors import LayoutOverflow
from data.layouts.layout import Layout, PerceptionAttribute

PREFIX = "An image with"
ATTRIBUTE_TOKENS = tuple(f"<{attribute}>" for attribute in PerceptionAttribute)

Tokenize = Callable[[str], Sequence[int]]
"""Text to token ids, without start and end tokens."""


@dataclass(frozen=True, slots=True)
class LocationGrid:
    """The grid of location tokens over an image.

    Attributes:
        rows: number of cells from top to bottom.
        columns: number of cells from left to right.
        binning: `round` to the nearest of the grid's points (released code) or `floor` to the cell
            that holds the point (paper).
    """

    rows: int
    columns: int
    binning: Literal["round", "floor"] = "round"

    @property
    def tokens(self) -> tuple[str, ...]:
        """All location tokens, row by row."""
        return tuple(f"<l{index}>" for index in range(self.rows * self.columns))

    def index(self, x: float, y: float) -> int:
        """Token index of a point in fractions of the image's sides.

        >>> LocationGrid(4, 4).index(1.0, 0.0), LocationGrid(4, 4).index(0.0, 1.0)
        (3, 12)
        """
        return self._bin(y, self.rows) * self.columns + self._bin(x, self.columns)

    def _bin(self, fraction: float, size: int) -> int:
        bounded = min(max(fraction, 0.0), 1.0)
        if self.binning == "round":
            return round(bounded * (size - 1))
        return min(int(bounded * size), size - 1)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and which of its tokens speak of which object.

    Attributes:
        text: the prompt, joined by single spaces.
        objects: index into the layout of each phrase.
        spans: (first, past-last) token position of each phrase; the start token has position 0.
        omitted: indices of the layout's objects that did not fit, if the policy allows that.
    """

    text: str
    objects: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    omitted: tuple[int, ...] = ()


def phrase(
    layout: Layout, index: int, class_names: dict[int, str], grid: LocationGrid | None
) -> tuple[str, tuple[str, ...]]:
    """Describe one object of a layout: the words of its class, and the special tokens after them."""
    tokens: list[str] = []
    if grid is not None:
        left, top, right, bottom = layout.boxes_normalized[index].tolist()
        tokens += [f"<l{grid.index(left, top)}>", f"<l{grid.index(right, bottom)}>"]
    attribute = layout.attributes[index]
    if attribute is not None:
        tokens.append(f"<{attribute}>")
    return class_names[int(layout.category_ids[index])].replace("-", " "), tuple(tokens)


def build_prompt(
    layout: Layout,
    class_names: dict[int, str],
    grid: LocationGrid | None,
    tokenize: Tokenize,
    max_length: int,
    *,
    overflow: Literal["error", "largest-first"] = "error",
) -> Prompt:
    """Write a layout as a prompt of at most `max_length` tokens, start and end included.

    That of a layout without boxes is empty, as in training where a prompt is dropped: nothing is known.

    Args:
        class_names: category id to name.
        grid: location tokens; None leaves places out.
        tokenize: called with class names and the prompt's first words; other tokens count as one.
        overflow: what to do with objects that do not fit: refuse the layout, or keep the largest
            boxes and name the others in `Prompt.omitted`.

    Raises:
        LayoutOverflow: the layout does not fit and the policy is `error`, or no box fits.
    """
    if len(layout.boxes) == 0:
        return Prompt("", (), (), ())
    phrases = [phrase(layout, index, class_names, grid) for index in range(len(layout.boxes))]
    lengths = [len(tokenize(words)) + len(tokens) for words, tokens in phrases]
    start = 1 + len(tokenize(PREFIX))
    kept = set(range(len(phrases)))
    if start + sum(lengths) + 1 > max_length:
        if overflow == "error":
            first = int(np.argmax(np.cumsum(lengths) > max_length - start - 1))
            raise LayoutOverflow(
                f"image {layout.image_id}: {len(phrases)} objects need {start + sum(lengths) + 1} tokens "
                f"and the tokenizer holds {max_length}: there is no room from box {first} on; filter to "
                "fewer objects (layouts.max_objects) or use overflow=largest-first"
            )
        kept = _largest_that_fit(layout, lengths, max_length - start - 1)
        if not kept:
            raise LayoutOverflow(
                f"image {layout.image_id}: none of its boxes fits into {max_length} tokens"
            )
    spans, position = [], start
    for index, length in enumerate(lengths):
        if index in kept:
            spans.append((position, position + length))
            position += length
    return Prompt(
        text=" ".join(
            [
                PREFIX,
                *(
                    " ".join([words, *tokens])
                    for i, (words, tokens) in enumerate(phrases)
                    if i in kept
                ),
            ]
        ),
        objects=tuple(sorted(kept)),
        spans=tuple(spans),
        omitted=tuple(i for i in range(len(phrases)) if i not in kept),
    )


def _largest_that_fit(layout: Layout, lengths: Sequence[int], budget: int) -> set[int]:
    areas = np.prod(layout.boxes[:, 2:] - layout.boxes[:, :2], axis=1)
    kept: set[int] = set()
    for position in np.argsort(-areas, kind="stable"):
        if lengths[position] <= budget:
            kept.add(int(position))
            budget -= lengths[position]
    return kept
