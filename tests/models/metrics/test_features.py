import io
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.utils import create_feature_extractor

from data.artifacts.digests import file_digest
from data.errors import InvalidModel
from data.vocabulary.images import read_square
from models.metrics import features as module
from models.metrics.distances import frechet_distance, moments, polynomial_mmd
from models.metrics.features import RESIZE, InceptionFeatures, RandomFeatures, image_features


def test_features_are_those_of_every_image_in_order(dataset):
    paths = [path for _, path in dataset.image_paths("train")] * 6
    features = image_features(lambda images: images.double().mean(dim=(2, 3)), paths, 32)
    assert features.shape == (72, 3)
    assert features.dtype == np.float32
    assert np.array_equal(features[:12], features[12:24])
    assert len(np.unique(features[:12], axis=0)) == 12


def test_the_resize_filter_is_the_one_that_is_stated(dataset):
    path = dataset.image_paths("train")[0][1]
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC))
    assert np.array_equal(read_square(path, 24), expected)
    assert RESIZE == "squashed, Pillow's bicubic"


def discs(count, size=32, seed=0):
    """Images of overlapping discs, whose sizes fall off as those of things do in photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    images = np.zeros((count, size, size, 3), np.uint8)
    for _ in range(40):
        column, row = rng.uniform(0, size, (2, count, 1, 1))
        radius = 2 / rng.uniform(1 / 8, 1, (count, 1, 1))
        grey, colour = rng.uniform(30, 225, (count, 1)), rng.normal(0, 25, (count, 3))
        disc = (x - column) ** 2 + (y - row) ** 2 < radius**2
        paint = np.clip(grey + colour, 0, 255).astype(np.uint8)
        images = np.where(disc[..., None], paint[:, None, None], images)
    return images


def blurred(images, sigma):
    return gaussian_filter(images.astype(np.float32), (0, sigma, sigma, 0)).round()


def noisy(images, sigma):
    return images + np.random.default_rng(1).normal(0, sigma, images.shape)


def recoloured(images, levels):
    return images + np.array([levels, 0.0, -levels])


def compressed(images, quality):
    def through_jpeg(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([through_jpeg(image) for image in images])


def shuffled(images, num_patches):
    rng, side = np.random.default_rng(2), images.shape[1] // num_patches
    rows = images.reshape(len(images), num_patches, side, num_patches, side, 3).swapaxes(2, 3)
    order = np.argsort(rng.random((len(images), num_patches**2)), axis=1)
    patches = np.take_along_axis(
        rows.reshape(len(images), num_patches**2, -1), order[..., None], axis=1
    )
    return patches.reshape(rows.shape).swapaxes(2, 3).reshape(images.shape)


@pytest.fixture(scope="module")
def comparison():
    """Two halves of images of the same kind: the second, and distances of images to the first."""
    extractor, images = RandomFeatures(), discs(300)

    def features(images):
        pixels = np.clip(np.rint(images), 0, 255).astype(np.uint8)
        return extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()

    def distances(images):
        found = features(images)
        frechet = frechet_distance(moments([real]), moments([found]))
        return np.array([frechet, polynomial_mmd(real, found)])

    real = features(images[:150])
    return images[150:], distances


@pytest.mark.parametrize(
    ("damage", "strengths"),
    [
        (blurred, (0.5, 0.7, 1.5)),
        (noisy, (6, 10, 25)),
        (recoloured, (10, 20, 40)),
        (compressed, (60, 25, 8)),
        (shuffled, (2, 4, 8)),
    ],
)
def test_random_features_tell_images_from_damaged_ones_the_more_the_worse(
    comparison, damage, strengths
):
    others, distances = comparison
    floor = distances(others)
    damaged = [distances(damage(others, strength)) for strength in strengths]
    assert (damaged[0] > 1.5 * np.abs(floor)).all()
    assert (np.diff(damaged, axis=0) > 0).all()
    assert (damaged[-1] > 10 * np.abs(floor)).all()


def ramp():
    """Images of one colour ramp each, uint8 (2, 3, 16, 24)."""
    y, x, colour = np.meshgrid(np.arange(16), np.arange(24), np.arange(3), indexing="ij")
    images = np.stack([10 * y + 3 * x + 20 * colour, 200 - 8 * x + 2 * y * colour])
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


def test_random_features_are_the_same_on_every_machine():
    torch.manual_seed(1)
    features = RandomFeatures()(ramp())
    assert RandomFeatures.name == "random VGG, seed 0"
    assert features.shape == (2, 123)
    torch.testing.assert_close(
        features[0, [1, 20, 27, 58, 60, 122]],
        torch.tensor([0.309, 0.2378, 1.8689, 0.1111, 0.6851, 1.1038]),
        rtol=1e-3,
        atol=1e-4,
    )


def test_random_features_depend_on_neither_the_global_generator_nor_the_batch(monkeypatch):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    together = RandomFeatures()(ramp())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    torch.testing.assert_close(RandomFeatures()(ramp()[1:]), together[1:])
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(RandomFeatures()(ramp()), together)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """File of random weights, as torch-fidelity stores InceptionV3's."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("inception", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_inception_features_are_torch_fidelitys(weights):
    theirs = create_feature_extractor(
        "inception-v3-compat",
        ["2048"],
        feature_extractor_weights_path=str(weights),
        cuda=False,
        verbose=False,
    )
    ours = InceptionFeatures(weights)
    features = ours(ramp())
    assert ours.name == "InceptionV3"
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, theirs(ramp())[0])
    assert not torch.allclose(features[0], features[1])


def test_a_file_that_does_not_hold_inceptions_weights_is_refused(tmp_path):
    path = tmp_path / "inception.pth"
    for content in ({"conv": torch.zeros(1)}, torch.zeros(1)):
        torch.save(content, path)
        with pytest.raises(InvalidModel, match=r"InceptionV3 of .*inception\.pth cannot be used"):
            InceptionFeatures(path)
    for content in (b"", b"no weights"):
        path.write_bytes(content)
        with pytest.raises(InvalidModel, match=r"inception\.pth cannot be used"):
            InceptionFeatures(path)


@pytest.fixture
def download(monkeypatch, tmp_path):
    """Has a file fetched as torch-fidelity's, by a name that says its digest or another."""

    def fetched(path, digest):
        url = (tmp_path / f"weights-{digest[:8]}.pth").as_uri()
        path.rename(tmp_path / f"weights-{digest[:8]}.pth")
        monkeypatch.setattr(module, "URL_INCEPTION_V3", url)
        monkeypatch.setattr(inception, "URL_INCEPTION_V3", url)
        monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
        return InceptionFeatures()

    return fetched


def test_what_is_fetched_has_to_be_what_was_published(download, weights, tmp_path):
    copy = tmp_path / "inception.pth"
    copy.write_bytes(weights.read_bytes())
    with pytest.raises(InvalidModel, match="invalid hash value"):
        download(copy, "0" * 8)
    copy.write_bytes(weights.read_bytes())
    features = download(copy, file_digest(weights))
    assert torch.equal(features(ramp()), InceptionFeatures(weights)(ramp()))


@pytest.mark.parametrize("is_fetched", [False, True])
def test_a_weights_file_is_not_run(tmp_path, download, is_fetched):
    class Program:
        def __reduce__(self):
            return (tmp_path / "was_run").touch, ()

    path = tmp_path / "inception.pth"
    torch.save({"conv": Program()}, path)
    with pytest.raises(InvalidModel):
        download(path, file_digest(path)) if is_fetched else InceptionFeatures(path)
    assert not (tmp_path / "was_run").exists()


def test_weights_that_cannot_be_fetched_are_asked_for(monkeypatch):
    def unreachable(*args, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(module, "load_state_dict_from_url", unreachable)
    with pytest.raises(
        InvalidModel, match=r"give torch-fidelity's file as evaluate\.inception_weights"
    ):
        InceptionFeatures()
