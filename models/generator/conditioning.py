"""What the diffusion model is told: tokens in the text encoder, the layout canvas at the UNet."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from data.errors import InvalidModel
from data.layouts.layout import Layout, PerceptionAttribute
from data.layouts.prompts import ATTRIBUTE_TOKENS, PREFIX, LocationGrid, Prompt, build_prompt
from data.vocabulary.tables import Category

LayoutConditioning = Literal["tokens", "canvas", "both"]
LocationEmbedding = Literal["word-norm", "raw"]

_ATTRIBUTE_INDEX = {None: 0, PerceptionAttribute.EASY: 1, PerceptionAttribute.HARD: 2}
_SHORTEST_PHRASE = 4
"""A class of one token, two corners, an attribute."""

_FREQUENCIES = (0.5, 1.0, 2.0)
"""Of the canvas' sine and cosine channels, in half periods per unit of in-box coordinate."""

_NUM_GEOMETRY_CHANNELS = 4 + 4 * len(_FREQUENCIES)

_CANVAS_SCALE = 10.0
"""Adam moves a weight by its rate however large the gradient: on larger inputs it has effect sooner."""


def sin_cos_embedding(rows: int, columns: int, width: int) -> Float[Tensor, "cells width"]:
    """2-D sin-cos position embedding of a grid, row by row: half the width for x, half for y [G].

    Raises:
        ValueError: the width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"embedding width {width} is not a multiple of 4")
    frequencies = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))

    def encode(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    y = encode(rows)[:, None].expand(rows, columns, -1)
    x = encode(columns)[None].expand(rows, columns, -1)
    return torch.cat([x, y], dim=2).reshape(rows * columns, width).float()


def add_layout_tokens(
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    grid: LocationGrid,
    location_embedding: LocationEmbedding = "word-norm",
) -> None:
    """Add location and attribute tokens that the tokenizer lacks, and rows for them to the encoder.

    Location rows start as 2-D sin-cos, `raw` as in released code [G] or at the norm of the words' rows
    [D]; the rows of `<easy>` and `<hard>` one standard deviation above and below the mean of the words'
    rows [D], so that they differ under a frozen text encoder too. Location rows that are there already
    are no words': they may be fifty times as long. Tokenizer and encoder are changed in place.

    Raises:
        InvalidModel: the tokenizer has location tokens of another grid, no room for the shortest
            prompt, or more tokens than the text encoder has rows.
    """
    known = tokenizer.get_vocab()
    room = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    if room < len(tokenizer(PREFIX).input_ids) + _SHORTEST_PHRASE:
        raise InvalidModel(f"prompts of {room} tokens have no room for a single box")
    missing = [token for token in grid.tokens if token not in known]
    if missing and len(missing) < len(grid.tokens):
        raise InvalidModel(
            f"the tokenizer knows {len(grid.tokens) - len(missing)} of the {len(grid.tokens)} location "
            f"tokens of a {grid.rows}×{grid.columns} grid: use the grid that it was made for"
        )
    if len(tokenizer) > len(text_encoder.get_input_embeddings().weight):
        raise InvalidModel(
            f"the tokenizer has {len(tokenizer)} tokens and the text encoder "
            f"{len(text_encoder.get_input_embeddings().weight)} rows: they are of different models"
        )
    if f"<l{len(grid.tokens)}>" in known:
        raise InvalidModel(
            f"the tokenizer has location tokens of a larger grid than {grid.rows}×{grid.columns}: use "
            "the grid that it was made for"
        )
    embedding = text_encoder.get_input_embeddings().weight.detach()
    is_word = torch.ones(len(embedding), dtype=torch.bool)
    is_word[[known[token] for token in grid.tokens if token in known]] = False
    words = embedding[is_word]
    norm, mean, spread = words.norm(dim=1).mean(), words.mean(dim=0), words.std(dim=0)
    attributes = [token for token in ATTRIBUTE_TOKENS if token not in known]
    tokenizer.add_tokens([*missing, *attributes])
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rows = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        if missing:
            table = sin_cos_embedding(grid.rows, grid.columns, rows.shape[1])
            first = tokenizer.convert_tokens_to_ids(missing[0])
            if location_embedding == "word-norm":
                table *= norm / table.norm(dim=1, keepdim=True)
            rows[first : first + len(missing)] = table
        for token in attributes:
            sign = 1 if token == ATTRIBUTE_TOKENS[0] else -1
            rows[tokenizer.convert_tokens_to_ids(token)] = mean + sign * spread


def widen_input(unet: UNet2DConditionModel, extra_channels: int) -> None:
    """Give the UNet's first convolution more input channels, with zero weights, in place.

    The widened UNet's output is unchanged, whatever the extra channels hold.
    """
    old = unet.conv_in
    new = nn.Conv2d(
        old.in_channels + extra_channels,
        old.out_channels,
        old.kernel_size,
        padding=old.padding,
    )
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)  # type: ignore[union-attr]
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)


@dataclass(frozen=True, slots=True)
class LayoutBatch:
    """Layouts padded to the same number of objects.

    Attributes:
        boxes: xyxy in fractions of the image's sides; padding is all zero.
        labels: index of the category, -1 for padding.
        attributes: 0 none, 1 easy, 2 hard.
        is_thing: true for things.
    """

    boxes: Float[Tensor, "batch objects 4"]
    labels: Int[Tensor, "batch objects"]
    attributes: Int[Tensor, "batch objects"]
    is_thing: Tensor

    def to(self, device: torch.device, *, non_blocking: bool = False) -> "LayoutBatch":
        """Move every tensor to a device."""
        tensors = {item.name: getattr(self, item.name) for item in fields(self)}
        moved = {k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()}
        return LayoutBatch(**moved)

    def pin_memory(self) -> "LayoutBatch":
        """Bring every tensor into memory that a GPU copies from while the CPU works on."""
        return LayoutBatch(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


def draw_canvas(
    layouts: LayoutBatch, num_categories: int, height: int, width: int
) -> Float[Tensor, "batch channels height width"]:
    """Draw layouts at latent resolution, larger boxes first, weighted by the share of a cell covered.

    Channels: one per category, one per attribute (easy, hard), then the geometry: the box's width
    and height as fractions of the image, the in-box coordinates u and v, -1 to 1 from edge to edge,
    and sines and cosines of both, from which sharp outlines are learnt much faster.
    """
    left, top, right, bottom = (edge[..., None] for edge in layouts.boxes.unbind(dim=-1))
    x = torch.arange(width, device=left.device) / width
    y = torch.arange(height, device=left.device) / height
    columns = (right.minimum(x + 1 / width) - left.maximum(x)).clamp(min=0) * width
    rows = (bottom.minimum(y + 1 / height) - top.maximum(y)).clamp(min=0) * height
    coverage = rows[..., :, None] * columns[..., None, :]
    sides = (right - left).clamp(min=1e-6), (bottom - top).clamp(min=1e-6)
    u = (2 * (x + 0.5 / width - left) / sides[0] - 1).clamp(-1.5, 1.5)
    v = (2 * (y + 0.5 / height - top) / sides[1] - 1).clamp(-1.5, 1.5)
    classes = nn.functional.one_hot(layouts.labels + 1, num_categories + 1)[..., 1:]
    attributes = nn.functional.one_hot(layouts.attributes, len(_ATTRIBUTE_INDEX))[..., 1:]
    constant = torch.cat([classes, attributes], dim=-1).float()
    across = [_waves(u)[..., None, :].expand(-1, -1, -1, height, -1), sides[0][..., None, None]]
    down = [_waves(v)[..., :, None].expand(-1, -1, -1, -1, width), sides[1][..., None, None]]
    geometry = torch.cat(
        [part.expand(*part.shape[:3], height, width) for part in (*across, *down)], dim=2
    )
    order = (sides[0] * sides[1])[..., 0].argsort(dim=1, descending=True, stable=True)
    num_channels = constant.shape[2] + geometry.shape[2]
    canvas = geometry.new_zeros(len(order), num_channels, height, width)
    batch = torch.arange(len(order), device=order.device)
    for index in order.unbind(dim=1):
        share = coverage[batch, index][:, None]
        alike = constant[batch, index][..., None, None].expand(-1, -1, height, width)
        painted = torch.cat([alike, geometry[batch, index]], dim=1)  # of all objects it is large
        canvas = canvas + share * (painted - canvas)
    return canvas


def _waves(
    coordinate: Float[Tensor, "batch objects length"],
) -> Float[Tensor, "batch objects waves length"]:
    """The coordinate itself, then its sines and cosines."""
    angles = [torch.pi * frequency * coordinate for frequency in _FREQUENCIES]
    waves = [function(angle) for angle in angles for function in (torch.sin, torch.cos)]
    return torch.stack([coordinate, *waves], dim=2)


def num_canvas_channels(num_categories: int) -> int:
    """Number of channels that `draw_canvas` returns."""
    return num_categories + len(_ATTRIBUTE_INDEX) - 1 + _NUM_GEOMETRY_CHANNELS


_tokenizing = threading.Lock()
"""A tokenizer's padding is a state of its own, and batches may be assembled in a thread."""


@lru_cache(maxsize=10_000)
def _word_ids(tokenizer: CLIPTokenizer, text: str) -> tuple[int, ...]:
    with _tokenizing:
        return tuple(tokenizer(text, add_special_tokens=False).input_ids)


@dataclass(frozen=True, slots=True)
class LayoutEncoder:
    """Turns layouts into model inputs; holds no weights.

    Attributes:
        tokenizer: with location and attribute tokens.
        categories: in the order of the canvas' class channels.
        conditioning: whether places go into the prompt, the canvas or both.
        grid: of the location tokens.
        overflow: what to do with layouts whose prompt is too long.
        perception_attributes: whether the layouts' easy/hard attributes are used.
    """

    tokenizer: CLIPTokenizer
    categories: tuple[Category, ...]
    conditioning: LayoutConditioning
    grid: LocationGrid
    overflow: Literal["error", "largest-first"] = "error"
    perception_attributes: bool = True

    @property
    def canvas_channels(self) -> int:
        """Extra input channels of the UNet; 0 without canvas."""
        return 0 if self.conditioning == "tokens" else num_canvas_channels(len(self.categories))

    def prompt(self, layout: Layout) -> Prompt:
        """Write the layout's prompt.

        Raises:
            LayoutOverflow: the prompt is too long and the policy is `error`.
        """
        return build_prompt(
            layout if self.perception_attributes else layout.without_attributes(),
            {item.category_id: item.name for item in self.categories},
            None if self.conditioning == "canvas" else self.grid,
            partial(_word_ids, self.tokenizer),
            self.tokenizer.model_max_length,
            overflow=self.overflow,
        )

    def input_ids(
        self, texts: Sequence[str], *, longest: bool = False
    ) -> Int[Tensor, "batch tokens"]:
        """Token ids of prompts, padded to the tokenizer's context length or to the longest prompt."""
        padding = "longest" if longest else "max_length"
        with _tokenizing:
            return self.tokenizer(list(texts), padding=padding, return_tensors="pt").input_ids

    def batch(self, layouts: Sequence[Layout]) -> LayoutBatch:
        """Pad layouts to a common number of objects, at least one."""
        index = {item.category_id: i for i, item in enumerate(self.categories)}
        size = (len(layouts), max(1, *(len(layout.boxes) for layout in layouts)))
        boxes = np.zeros((*size, 4), dtype=np.float32)
        labels = np.full(size, -1)
        attributes, is_thing = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)
        for row, layout in enumerate(layouts):
            count = len(layout.boxes)
            boxes[row, :count] = layout.boxes_normalized
            labels[row, :count] = [index[int(key)] for key in layout.category_ids]
            if self.perception_attributes:
                attributes[row, :count] = [_ATTRIBUTE_INDEX[value] for value in layout.attributes]
            is_thing[row, :count] = layout.is_thing
        return LayoutBatch(*map(torch.from_numpy, (boxes, labels, attributes, is_thing)))

    def canvas(
        self, layouts: LayoutBatch, height: int, width: int
    ) -> Float[Tensor, "batch channels height width"]:
        """Draw the canvas, enlarged; zero channels where places go into the prompt alone."""
        if self.conditioning == "tokens":
            return layouts.boxes.new_zeros(len(layouts.boxes), 0, height, width)
        return _CANVAS_SCALE * draw_canvas(layouts, len(self.categories), height, width)


def token_weights(
    prompts: Sequence[Prompt], num_objects: int, num_tokens: int
) -> Float[Tensor, "batch objects tokens"]:
    """Weights that average each object's own tokens; zero rows for objects not in the prompt."""
    weights = torch.zeros(len(prompts), num_objects, num_tokens)
    for row, prompt in enumerate(prompts):
        for index, (first, last) in zip(prompt.objects, prompt.spans, strict=True):
            weights[row, index, first:last] = 1 / (last - first)
    return weights
