"""The frame of pages: escaping, tables that scroll, and what is not known."""

import math

import pytest

from models.metrics.interval import Interval
from tasks.pages.html import write_page


@pytest.fixture
def table(tmp_path):
    """Writes a page with a table and returns the page."""

    def write(rows):
        write_page(tmp_path / "page.html", "A <title>", "{{ table(rows) }}", rows=rows)
        return (tmp_path / "page.html").read_text()

    return write


def test_what_is_not_known_is_a_dash_and_an_interval_is_one_cell(table):
    page = table(
        [{"a": "x", "b": None, "c": math.nan, "d": 0.123456, "e": Interval(1.0, 0.9, 1.1)}]
    )
    assert "<td>x</td><td>—</td><td>—</td><td>0.1235</td><td>1.00 (0.90 to 1.10)</td>" in page


def test_names_and_values_are_escaped(table):
    page = table([{"<i>": "<b>bold</b>", "x": "a & <c>"}])
    assert "<title>A &lt;title&gt;</title>" in page
    assert "<th>&lt;i&gt;</th>" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "a &amp; &lt;c&gt;" in page


def test_words_stand_on_the_left_and_numbers_on_the_right(table):
    page = table(
        [{"a": "word", "b": "+0.1 (0 to 1)", "c": None}, {"a": "x", "b": None, "c": "cannot tell"}]
    )
    assert "<td>+0.1 (0 to 1)</td>" in page
    assert '<td class="text">—</td>' in page
    assert '<td class="text">cannot tell</td>' in page


def test_a_table_scrolls_and_may_be_empty(table):
    assert '<div class="scroll"><table>' in table([{"a": 1}])
    assert "<p>None.</p>" in table([])
