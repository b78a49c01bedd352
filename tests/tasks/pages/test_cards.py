import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from data.layouts.gallery import contact_sheet, draw_layout
from tasks.pages.cards import markdown_picture, markdown_table, write_card


def test_tables_have_a_row_each():
    table = markdown_table([{"a": 1, "b": 0.123456}, {"a": 2, "b": None}])
    assert table.splitlines()[2:] == ["| 1 | 0.1235 |", "| 2 | — |"]
    assert markdown_table([]) == "*none*"


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
