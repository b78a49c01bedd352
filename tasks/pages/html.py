"""HTML pages that need no other file: their frame, and tables in it."""

from pathlib import Path
from typing import Any

from jinja2 import Environment

from tasks.pages.numbers import format_value

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #dde3ea; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th { background: #f4f6f9; }
img { max-width: 100%; } .gallery img { image-rendering: pixelated; }
</style></head><body>
<h1>{{ title }}</h1>
{% macro table(rows) %}<table><tr>{% for name in rows[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for value in row.values() %}<td>{{ value | number }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}
"""

_FOOT = "</body></html>\n"


def write_page(path: Path, title: str, body: str, **values: Any) -> None:
    """Write a page.

    Args:
        body: Jinja template; `table(rows)` and the filter `number` are there for it.
        values: what the template names; text is escaped.
    """
    environment = Environment(autoescape=True)
    environment.filters["number"] = format_value
    page = environment.from_string(_HEAD + body + _FOOT).render(title=title, **values)
    path.write_text(page, encoding="utf-8")
