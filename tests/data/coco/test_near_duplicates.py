from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.coco import near_duplicates
from data.coco.near_duplicates import find_near_duplicates

SHARED = Path(__file__).parents[4] / "shared"
SHARE = 0.2


def picture(rng, width=64, height=48):
    """Blobs of all sizes."""
    layers = [rng.normal(0, 128, (3 * 2**k, 4 * 2**k)) / 2**k for k in range(4)]
    images = [Image.fromarray(layer.astype(np.float32)).resize((width, height)) for layer in layers]
    return np.clip(128 + sum(np.asarray(image) for image in images), 0, 255).astype(np.uint8)


def film(rng, count, step=1):
    """Frames of a view that moves on by so many of its 48 columns, with noise of their own."""
    scene = picture(rng)
    for number in range(count):
        left = step * number % 16
        yield np.clip(scene[:, left : left + 48] + rng.normal(0, 4, (48, 48)), 0, 255)


def save(folder, name, pixels):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels).astype(np.uint8)).resize((192, 192)).save(path)
    return name


@pytest.fixture
def films(tmp_path):
    """Factory of eight films of 12 frames, as long as a view moves to one side; returns their names."""

    def create(name="film{film}_{frame}.jpg"):
        rng = np.random.default_rng(0)
        return [
            save(tmp_path, name.format(film=n, frame=k, number=12 * n + k), pixels)
            for n in range(8)
            for k, pixels in enumerate(film(rng, 12))
        ]

    return create


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("film{film}_{frame}.jpg", near_duplicates.KEYS[0]),  # 10 comes after 9
        ("{film}/{frame:03d}.png", near_duplicates.KEYS[0]),
        ("of 2019/{film}.{frame:02d}.5s.jpg", None),
        ("{film}/at {frame:02d}:30.jpg", near_duplicates.KEYS[1]),
        ("{number:05d}.jpg", None),
        ("all/{number:05d}.jpg", None),
    ],
)
def test_frames_of_films_are_found_and_what_in_their_names_tells_them_apart(
    films, tmp_path, name, key
):
    names = films(name)
    found = find_near_duplicates(reversed(names), tmp_path, SHARE)
    assert found.group_by == key
    assert ("their names do not tell" in str(found)) == (key is None)
    assert found.is_clear
    assert found.num_images == 96
    order = {name: number for number, name in enumerate(names)}
    pairs = [(order[a], order[b]) for a, b in found.pairs]
    assert {b - a for a, b in pairs} == {1}
    assert not any(a // 12 != b // 12 for a, b in pairs)
    assert found.num_alike > 0.9 * 96


def test_pictures_that_differ_are_not_alike_and_even_ones_say_nothing(tmp_path):
    rng = np.random.default_rng(0)
    names = [save(tmp_path, f"{number}.png", picture(rng)) for number in range(60)]
    names += [save(tmp_path, f"even {n}.png", np.full((48, 48), n)) for n in range(60)]
    (tmp_path / "broken.png").write_text("no image")
    found = find_near_duplicates([*names, "broken.png", "missing.png"], tmp_path, SHARE)
    assert (found.num_images, found.pairs, found.is_clear) == (60, [], False)


def test_copies_are_found_wherever_they_are(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(20)]
    for folder in ("a", "b"):
        for number, pixels in enumerate(pictures):
            save(tmp_path, f"{folder}/{number}.png", pixels)
    names = [f"{folder}/{number}.png" for folder in "ab" for number in range(20)]
    found = find_near_duplicates(names, tmp_path, SHARE)
    assert found.pairs == [(f"a/{n}.png", f"b/{n}.png") for n in range(20)]
    assert found.group_by is None  # both folders have all of them


def test_a_key_that_keeps_together_what_is_not_alike_is_none(tmp_path):
    rng = np.random.default_rng(0)
    names = []
    for kind in "abcdefgh":  # classes, say, with two shots of a few things
        pictures = [picture(rng) for _ in range(10)]
        pictures.insert(3, pictures[3])
        names += [save(tmp_path, f"{kind}_{n}.png", pixels) for n, pixels in enumerate(pictures)]
    found = find_near_duplicates(names, tmp_path, SHARE)
    assert found.pairs == [(f"{kind}_3.png", f"{kind}_4.png") for kind in "abcdefgh"]
    assert found.is_clear
    assert found.group_by is None


def test_a_key_that_leaves_next_to_nothing_to_validate_on_is_none(tmp_path):
    rng = np.random.default_rng(0)
    names = [save(tmp_path, f"long_{n}.png", pixels) for n, pixels in enumerate(film(rng, 16))]
    names.append(save(tmp_path, "short_1.png", picture(rng)))
    found = find_near_duplicates(names, tmp_path, SHARE)
    assert found.is_clear
    assert found.group_by is None


def test_of_many_images_pairs_of_neighbours_are_looked_at(films, tmp_path, monkeypatch):
    monkeypatch.setattr(near_duplicates, "MOST_LOOKED_AT", 24)
    names = films()
    found = find_near_duplicates(names, tmp_path, SHARE)
    assert found.num_images == 24
    assert 10 <= len(found.pairs) <= 12
    assert found.group_by == near_duplicates.KEYS[0]


@pytest.mark.parametrize(
    ("data", "count", "pairs"),
    [("coco-sample", 160, []), ("bccd", 364, [("BloodImage_00037.jpg", "BloodImage_00038.jpg")])],
)
def test_of_real_data_sets_pictures_of_one_place_alone_are_alike(data, count, pairs):
    folder = SHARED / data
    if not folder.is_dir():
        pytest.skip(f"{data} is not here")
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.jpg")]
    found = find_near_duplicates(names, folder, SHARE)
    assert found.num_images == count
    assert [tuple(Path(name).name for name in pair) for pair in found.pairs] == pairs
    assert not found.is_clear
