from dataclasses import replace

import numpy as np
import pytest
import torch

from data.errors import InvalidDataset
from data.vocabulary.images import read_square
from models.generator.autoencoder import pixel_values
from models.training.training_set import _CHUNK, build_training_set, latent_masks


@pytest.fixture
def build(new_generator, layouts, dataset, tmp_path):
    def create(latents):
        paths = dict(dataset.image_paths("train"))
        model = new_generator().model
        return build_training_set(model, layouts, paths, tmp_path / latents, latents)

    return create


def test_mirrored_latents_are_those_of_the_mirrored_image(build):
    training_set = build("cached")
    path = training_set.image_paths[training_set.layouts[3].image_id]
    pixels = pixel_values(read_square(path, 64)[None, :, ::-1].copy())
    vae, noise = training_set.model.vae, torch.randn(1, 12, 16, 16)
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    found = training_set.latents([3], torch.tensor([True]), noise)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_latents_encoded_online_are_the_cached_ones(build):
    noise, flips = torch.randn(4, 12, 16, 16), torch.tensor([True, False, False, True])
    cached, online = (
        build(kind).latents([5, 0, 2, 2], flips, noise) for kind in ("cached", "online")
    )
    torch.testing.assert_close(online, cached, atol=1e-5, rtol=1e-5)


def test_latents_have_the_posteriors_spread(build):
    training_set = build("cached")
    moments = training_set.moments.copy()
    moments[:, :, 12:] = 2 * np.log(3.0)
    spread = replace(training_set, moments=moments)
    noise, flips = torch.randn(2, 12, 16, 16), torch.tensor([False, True])
    difference = spread.latents([0, 1], flips, noise) - spread.latents([0, 1], flips, 0 * noise)
    expected = 3 * noise * training_set.model.vae.config.scaling_factor
    torch.testing.assert_close(difference, expected, atol=1e-5, rtol=1e-4)


def test_the_masks_file_holds_every_images_masks(build, layouts):
    training_set = build("cached")
    for index, layout in enumerate(layouts):
        expected = latent_masks(layout, 16)
        torch.testing.assert_close(training_set.masks(index) / 255, expected, atol=0.002, rtol=0)


def test_a_box_without_mask_uses_its_rectangle(layouts):
    layout = replace(layouts[0], masks=(None,) * len(layouts[0].boxes))
    masks = latent_masks(layout, 16)
    left, top, right, bottom = layout.boxes[0]
    assert masks[0].sum() * 16 == pytest.approx((right - left) * (bottom - top))


@pytest.mark.parametrize(
    ("width", "height", "size"), [(64, 48, 16), (1234, 817, 64), (100, 31, 7), (9, 40, 16)]
)
def test_a_rectangle_is_pooled_as_its_mask_is_to_the_last_bit(layouts, width, height, size):
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, [width, height], (40, 2, 2)), axis=1)
    whole = [[0, 0], [width, height]]
    boxes = np.concatenate([corners, [whole]]).reshape(-1, 4)
    layout = replace(
        layouts[0], boxes=boxes, masks=(None,) * len(boxes), width=width, height=height
    )
    for box, pooled in zip(boxes, latent_masks(layout, size), strict=True):
        mask = torch.zeros(1, 1, height, width)
        (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        mask[..., top:bottom, left:right] = 1
        assert torch.equal(pooled, torch.nn.functional.adaptive_avg_pool2d(mask, size)[0, 0])


def test_masks_on_the_latent_grid_keep_their_area(layouts, dataset):
    areas = dict(
        zip(dataset.objects["mask"].to_pylist(), dataset.objects["area"].to_pylist(), strict=True)
    )
    masks = latent_masks(layouts[0], 16)
    for mask, counts in zip(masks, layouts[0].masks, strict=True):
        assert mask.sum() * 16 == pytest.approx(areas[counts])


def test_encoding_goes_on_where_it_was_stopped(new_generator, layouts, dataset, tmp_path):
    model, paths = new_generator().model, dict(dataset.image_paths("train"))
    many = 7 * layouts
    assert len(many) > 2 * _CHUNK
    seen = []

    def stop(done, total, status):
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_training_set(model, many, paths, tmp_path / "a", "cached", stop)
    stopped = build_training_set(model, many, paths, tmp_path / "a", "cached", stop)
    whole = build_training_set(model, many, paths, tmp_path / "b")
    assert seen[:3] == [_CHUNK, 2 * _CHUNK, min(3 * _CHUNK, len(many))]
    assert np.array_equal(stopped.moments, whole.moments)
    assert np.array_equal(stopped.coverage, whole.coverage)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["latents.npy", "masks.npy"]


def test_no_layout_is_refused(new_generator, tmp_path):
    with pytest.raises(InvalidDataset, match="no image has a layout"):
        build_training_set(new_generator().model, [], {}, tmp_path)


def test_images_that_are_read_ahead_are_the_same(build, new_generator, layouts, dataset, tmp_path):
    paths = dict(dataset.image_paths("train"))
    ahead = build_training_set(
        new_generator().model, layouts, paths, tmp_path / "ahead", num_workers=2
    )
    assert np.array_equal(ahead.moments, build("cached").moments)
