import io

import mmcv
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from data.errors import InvalidDataset
from data.vocabulary.images import (
    SIZE_BEFORE_EXIF,
    TOO_DEEP,
    difference_hash,
    image_problem,
    orientation,
    read_rgb,
    read_square,
)

WIDTH, HEIGHT = 60, 40


def smooth():
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = (rows * 6, columns * 4, rows * 2 + columns * 2)
    return np.stack(channels, axis=-1).astype(np.uint8)


def rotated(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


def grey_16_bit():
    return Image.fromarray(smooth()[..., 0].astype(np.uint16) * 256 + 77)


PICTURES = {
    "rgb.jpg": (Image.fromarray(smooth()), {}),
    "grey.jpg": (Image.fromarray(smooth()).convert("L"), {}),
    "cmyk.jpg": (Image.fromarray(smooth()).convert("CMYK"), {"quality": 95}),
    "turned.jpg": (Image.fromarray(smooth()), rotated(6)),
    "mirrored.jpg": (Image.fromarray(smooth()), rotated(2)),
    "turned.png": (Image.fromarray(smooth()), rotated(8)),
    "turned.tif": (Image.fromarray(smooth()), rotated(6)),
    "16bit.png": (grey_16_bit(), {}),
    "16bit.tif": (grey_16_bit(), {}),
    "16bit.pgm": (grey_16_bit(), {}),
    "palette.png": (Image.fromarray(smooth()).convert("P"), {}),
    "alpha.png": (Image.fromarray(np.dstack([smooth(), smooth()[..., 0]])), {}),
    "grey-alpha.png": (Image.fromarray(smooth()).convert("LA"), {}),
    "a.bmp": (Image.fromarray(smooth()), {}),
    "lossless.webp": (Image.fromarray(smooth()), {"lossless": True}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_images_are_read_as_mmdetection_reads_them(tmp_path, name):
    picture, options = PICTURES[name]
    picture.save(tmp_path / name, **options)
    theirs = np.ascontiguousarray(mmcv.imread(str(tmp_path / name))[..., ::-1])
    height, width = theirs.shape[:2]
    assert image_problem(tmp_path / name, width, height) is None
    exchanged = SIZE_BEFORE_EXIF if "turned" in name else "size differs from the image file's"
    assert image_problem(tmp_path / name, height, width) == exchanged
    square = Image.fromarray(theirs).resize((64, 64), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(square).astype(int) - read_square(tmp_path / name, 64))
    assert difference.max() <= (2 if picture.mode == "CMYK" else 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "gif", "tif"])
def test_a_body_that_is_cut_short_is_found(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, Image.registered_extensions()[f".{suffix}"])
    path = tmp_path / f"a.{suffix}"
    for share in (0.99, 0.5):
        path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
        problem = image_problem(path, WIDTH, HEIGHT)
        assert problem in {"image file cut short or damaged", "image file unreadable"}
    path.write_bytes(buffer.getvalue())
    assert image_problem(path, WIDTH, HEIGHT) is None


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("integers.tif", np.full((HEIGHT, WIDTH), 70_000, np.int32)),
        ("floats.tif", smooth()[..., 0].astype(np.float32) / 255),
        ("floats.pgm", smooth()[..., 0].astype(np.float32) / 255),
    ],
)
def test_pixels_of_which_nothing_says_what_is_white_are_refused(tmp_path, name, pixels):
    Image.fromarray(pixels).save(path := tmp_path / name)
    assert image_problem(path, WIDTH, HEIGHT) == TOO_DEEP
    with pytest.raises(InvalidDataset, match=rf"{name} cannot be used: .* 8 or 16 bits"):
        read_rgb(path)


def test_signed_16_bits_are_read_as_opencv_reads_them(tmp_path):
    pixels = smooth()[..., 0].astype(np.int16) * 128
    mmcv.imwrite(pixels, str(path := tmp_path / "signed.tif"))
    assert image_problem(path, WIDTH, HEIGHT) is None
    assert (np.asarray(read_rgb(path)) == mmcv.imread(str(path))).all()


def test_bytes_after_a_jpeg_do_no_harm(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"trailer" * 2000)
    assert image_problem(tmp_path / "a.jpg", WIDTH, HEIGHT) is None


def test_damaged_headers_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "PNG")
    draw = np.random.default_rng(0)
    for _ in range(300):
        text = bytearray(buffer.getvalue())
        text[draw.integers(0, 60)] = draw.integers(0, 256)
        (tmp_path / "a.png").write_bytes(text)
        image_problem(tmp_path / "a.png", WIDTH, HEIGHT)


@pytest.mark.parametrize("name", PICTURES)
def test_what_exif_turns_or_mirrors_is_known(name, tmp_path):
    picture, options = PICTURES[name]
    picture.save(tmp_path / name, **options)
    assert orientation(tmp_path / name) == options.get("exif", {}).get(0x0112, 1)
    assert orientation(tmp_path / "missing.jpg") == 1


def test_an_orientation_that_is_none_turns_nothing(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", **rotated(9))
    assert orientation(tmp_path / "a.jpg") == 1
    assert image_problem(tmp_path / "a.jpg", WIDTH, HEIGHT) is None
    assert read_rgb(tmp_path / "a.jpg").size == (WIDTH, HEIGHT)


def test_postscript_is_not_read_whatever_its_name(tmp_path, monkeypatch):
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", str(tmp_path / "gs"))
    path = tmp_path / "image.jpg"
    Image.fromarray(smooth()).save(path, "EPS")
    assert image_problem(path, WIDTH, HEIGHT) == "image file unreadable"
    with pytest.raises(InvalidDataset, match="cannot be read"):
        read_rgb(path)
    assert not started.exists()


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.fromarray(smooth()).save(path := tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 3)
    assert image_problem(path, WIDTH, HEIGHT) == "image of gigantic size"
    with pytest.raises(InvalidDataset, match="cannot be read"):
        read_rgb(path)


def test_a_hash_says_where_cells_grow_lighter(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 45)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    cells = np.array([[part.mean() for part in np.hsplit(row, 9)] for row in np.vsplit(noise, 8)])
    bits = "".join(f"{difference > 0:d}" for difference in np.diff(cells.round()).flatten())
    assert difference_hash(tmp_path / "a.png") == int(bits, 2)
    Image.fromarray(noise // 32 + 100).save(tmp_path / "even.png")
    assert difference_hash(tmp_path / "even.png") is None
    assert difference_hash(tmp_path / "missing.png") is None
