import itertools

import pytest

from models.training.training_set import build_training_set


@pytest.fixture
def prepare(new_generator, layouts, dataset, tmp_path):
    paths = dict(dataset.image_paths("train"))
    count = itertools.count()

    def create(conditioning="both", latents="cached", **options):
        generator = new_generator(conditioning, **options)
        folder = tmp_path / f"training_set{next(count)}"
        return generator, build_training_set(generator.model, layouts, paths, folder, latents)

    return create
