from dataclasses import replace

import pytest
import torch

from data.errors import InvalidDataset
from data.images import read_square
from models.autoencoder import pixel_values
from models.training_set import encode_training_set, latent_masks


def test_mirrored_latents_are_those_of_the_mirrored_image(
    new_generator, layouts, dataset, tmp_path
):
    generator, paths = new_generator(), dict(dataset.image_paths("train"))
    cache = tmp_path / "latents.npy"
    latents = encode_training_set(generator, layouts, paths, cache).latents
    assert latents.shape == (2, 12, 12, 16, 16)
    mirrored = pixel_values(read_square(paths[layouts[3].image_id], 64)[None, :, ::-1].copy())
    with torch.no_grad():
        vae = generator.model.vae
        expected = vae.encode(mirrored).latent_dist.mean[0] * vae.config.scaling_factor
    torch.testing.assert_close(latents[1, 3], expected)


def test_a_box_without_mask_uses_its_rectangle(layouts):
    layout = replace(layouts[0], masks=(None,) * len(layouts[0].boxes))
    masks = latent_masks(layout, 16)
    left, top, right, bottom = layout.boxes[0]
    assert masks[0].sum() * 16 == pytest.approx((right - left) * (bottom - top))


def test_masks_on_the_latent_grid_keep_their_area(layouts, dataset):
    areas = dict(
        zip(dataset.objects["mask"].to_pylist(), dataset.objects["area"].to_pylist(), strict=True)
    )
    masks = latent_masks(layouts[0], 16)
    for mask, counts in zip(masks, layouts[0].masks, strict=True):
        assert mask.sum() * 16 == pytest.approx(areas[counts])


def test_no_layout_is_refused(new_generator, tmp_path):
    with pytest.raises(InvalidDataset, match="no image has a layout"):
        encode_training_set(new_generator(), [], {}, tmp_path / "x.npy")
