import pytest
import torch

from data.errors import InvalidModel
from data.layouts.prompts import LocationGrid
from models.generator.conditioning import (
    LayoutBatch,
    add_layout_tokens,
    draw_canvas,
    num_canvas_channels,
    sin_cos_embedding,
    token_weights,
    widen_input,
)


def test_every_location_and_attribute_is_one_token(new_generator):
    generator = new_generator()
    ids = generator.encoder.tokenizer(
        "<l0> <l63> <easy> <hard>", add_special_tokens=False
    ).input_ids
    assert len(set(ids)) == 4
    table = generator.model.text_encoder.get_input_embeddings().weight
    assert len(table) == len(generator.encoder.tokenizer)


def test_spans_point_at_the_phrase_in_the_whole_prompt(new_generator, layouts):
    encoder = new_generator().encoder
    for layout in layouts:
        prompt = encoder.prompt(layout)
        ids = encoder.input_ids([prompt.text])[0].tolist()
        for index, (first, last) in zip(prompt.objects, prompt.spans, strict=True):
            words = encoder.tokenizer.convert_ids_to_tokens(ids[first:last])
            name = next(
                c.name for c in encoder.categories if c.category_id == layout.category_ids[index]
            )
            assert words[0] == name
            assert sum(word.startswith("<l") for word in words) == 2


def test_adding_tokens_twice_changes_nothing(new_generator):
    generator = new_generator()
    before = generator.model.text_encoder.get_input_embeddings().weight.clone()
    add_layout_tokens(generator.encoder.tokenizer, generator.model.text_encoder, LocationGrid(8, 8))
    torch.testing.assert_close(generator.model.text_encoder.get_input_embeddings().weight, before)


def test_a_grid_larger_than_the_tokenizers_is_refused(new_generator):
    generator = new_generator()
    with pytest.raises(InvalidModel, match="64 of the 100"):
        add_layout_tokens(
            generator.encoder.tokenizer, generator.model.text_encoder, LocationGrid(10, 10)
        )


def test_neighbouring_cells_have_similar_embeddings():
    table = sin_cos_embedding(8, 8, 64)
    near, far = (table[0] - table[1]).norm(), (table[0] - table[63]).norm()
    assert near < far
    assert len(table.unique(dim=0)) == 64


def test_a_widened_unet_is_unchanged_whatever_the_canvas(new_generator):
    unet = new_generator("tokens").model.unet.eval()
    latents, states = torch.randn(1, 12, 16, 16), torch.randn(1, 5, 32)
    before = unet(latents, 10, states).sample
    widen_input(unet, 7)
    after = unet(torch.cat([latents, torch.randn(1, 7, 16, 16)], dim=1), 10, states).sample
    torch.testing.assert_close(after, before)
    assert unet.config.in_channels == 19


def batch(*boxes, labels=None):
    count = len(boxes)
    return LayoutBatch(
        torch.tensor([boxes]),
        torch.tensor([labels or list(range(count))]),
        torch.tensor([[1] * count]),
        torch.ones(1, count, dtype=torch.bool),
    )


def test_the_canvas_covers_cells_by_their_share_and_small_boxes_lie_on_top():
    canvas = draw_canvas(batch((0.25, 0.25, 0.5, 0.5), (0.0, 0.0, 1.0, 0.625)), 3, 4, 4)[0]
    assert canvas.shape[0] == num_canvas_channels(3)
    small, large, absent = canvas[:3]
    assert small[1, 1] == 1
    assert small.sum() == 1
    assert large[1, 1] == 0
    assert large[0].tolist() == [1, 1, 1, 1]
    assert large[2].tolist() == [0.5] * 4
    assert large[3].tolist() == [0] * 4
    assert (absent == 0).all()
    torch.testing.assert_close(canvas[3], small + large)
    assert (canvas[4] == 0).all()


def test_the_unet_sees_the_canvas_enlarged(new_generator):
    layouts = batch((0.25, 0.25, 0.5, 0.5))
    encoder = new_generator("canvas").encoder
    drawn = draw_canvas(layouts, len(encoder.categories), 4, 4)
    torch.testing.assert_close(encoder.canvas(layouts, 4, 4), 10 * drawn)


def test_padding_draws_nothing():
    canvas = draw_canvas(batch((0.0, 0.0, 0.0, 0.0), labels=[-1]), 3, 4, 4)
    assert (canvas == 0).all()


def test_flipping_the_layout_flips_the_classes():
    box, mirrored = (0.1, 0.2, 0.4, 0.9), (0.6, 0.2, 0.9, 0.9)
    first, second = draw_canvas(batch(box), 1, 8, 8), draw_canvas(batch(mirrored), 1, 8, 8)
    torch.testing.assert_close(first[:, :3].flip(-1), second[:, :3])


def test_token_weights_average_the_phrase(new_generator, layouts):
    prompt = new_generator().encoder.prompt(layouts[0])
    weights = token_weights([prompt], 20, 64)
    count = len(prompt.objects)
    assert weights.sum(dim=2)[0].tolist() == pytest.approx([1.0] * count + [0.0] * (20 - count))
    first, last = prompt.spans[0]
    assert weights[0, prompt.objects[0], first:last].min() > 0
