import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from data.layouts.gallery import contact_sheet, draw_boxes, draw_layout, page_picture, picture_uri
from data.layouts.layout import PerceptionAttribute
from tasks.pages.cards import markdown_picture, markdown_table, narrow_table, write_card


def test_tables_have_a_row_each():
    table = markdown_table([{"a": 1, "b": 0.123456}, {"a": 2, "b": None}])
    assert table.splitlines()[2:] == ["| 1 | 0.1235 |", "| 2 | — |"]
    assert markdown_table([]) == "*none*"


def test_what_all_rows_have_alike_stands_below_a_narrow_table():
    rows = [{"images": name, "AP": 0.5 + n, "number": 224, "way": way} for n, (name, way) in
            enumerate([("real", None), ("easy", "drawn")])]  # fmt: skip
    assert narrow_table(rows).splitlines() == [
        "| images | AP |", "|---|---|", "| real | 0.5 |", "| easy | 1.5 |", "",
        "In all rows that have it: number 224 · way drawn",
    ]  # fmt: skip
    assert narrow_table(rows[:1]) == markdown_table(rows[:1])
    assert narrow_table([{"a": 1}, {"a": 1}]) == markdown_table([{"a": 1}, {"a": 1}])
    assert narrow_table([]) == markdown_table([])


def test_large_pictures_are_made_to_fit_the_ui():
    noise = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    text = markdown_picture(noise, "noise")
    assert len(text) < 300_000
    png = base64.b64decode(re.search(r"base64,([^)]*)", text)[1])
    width, height = Image.open(io.BytesIO(png)).size
    assert width / height == pytest.approx(800 / 600, rel=0.02)


def test_a_card_is_written(tmp_path):
    write_card(tmp_path, "Title", "text")
    assert (tmp_path / "card.md").read_text() == "# Title\n\ntext\n"


def test_a_contact_sheet_holds_every_picture():
    red, blue = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet([[red, blue], [blue]])
    assert sheet.shape == (11, 13, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[0, 12].tolist() == sheet[10, 0].tolist() == [0, 0, 255]
    assert sheet[10, 12].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([[]])


def test_boxes_are_drawn_where_the_layout_has_them(layouts):
    layout = layouts[0].with_policy("easy")
    picture = draw_layout(np.zeros((64, 64, 3), np.uint8), layout, scale=1)
    left, top, _, _ = layout.boxes[0].astype(int)
    assert picture[top, left].tolist() == [40, 200, 90]


def test_boxes_have_the_colour_of_their_attribute_and_the_image_is_left_alone():
    black = np.zeros((40, 80, 3), np.uint8)
    boxes = np.array([[0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0]])
    drawn = draw_boxes(black, boxes, [PerceptionAttribute.HARD, None], line=2)
    assert drawn[1, 10].tolist() == drawn[0, 10].tolist() == [235, 60, 60]
    assert drawn[39, 79].tolist() == [70, 130, 235]
    assert not black.any()
    assert not drawn[5, 10].any()


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 48), (128, 96)), ((30, 20), (120, 80)), ((100, 50), (100, 50)),
        ((640, 480), (256, 192)), ((9999, 1), (256, 1)),
    ],
)  # fmt: skip
def test_pictures_keep_their_proportions_and_are_large_enough(tmp_path, size, shown):
    Image.new("RGB", size, "red").save(tmp_path / "image.png")
    assert page_picture(tmp_path / "image.png").shape == (*shown[::-1], 3)


def test_small_pictures_are_embedded_without_loss():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    kind, text = picture_uri(noise).split(";base64,")
    assert kind == "data:image/png"
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) == noise).all()
    assert picture_uri(np.zeros((129, 10, 3), np.uint8)).startswith("data:image/jpeg;base64,")
