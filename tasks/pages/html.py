"""HTML pages that need no other file: their frame, and tables in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from data.layouts.gallery import data_uri
from tasks.pages.numbers import format_value

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 0 auto 3rem; padding: 0 1rem;
  color: #1c2430; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-top: 1px solid #dde3ea;
  padding-top: 1rem; } h3 { font-size: 1.05rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; } p { margin: .5rem 0; }
.first { font-size: 1.15rem; font-weight: 600; } .note { color: #5a6472; font-size: .9rem; }
.missing { border-left: 4px solid #b3261e; background: #fdf1f0; padding: .4rem .8rem; max-width: 46rem; }
.helps { color: #157347; font-weight: 600; } .costs { color: #b3261e; font-weight: 600; }
.unknown { color: #5a6472; font-weight: 600; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #dde3ea; text-align: right; white-space: nowrap; }
th { background: #f4f6f9; vertical-align: bottom; white-space: normal; min-width: 4rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
th:first-child { background: #f4f6f9; }
.text, th:first-child, td:first-child { text-align: left; }
td.long { white-space: normal; min-width: 9rem; max-width: 26rem; overflow-wrap: anywhere; }
img { max-width: 100%; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.plots figure { flex: 1 1 20rem; max-width: 36rem; }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .8rem; line-height: 1.3; padding: .15rem 0; overflow-wrap: anywhere; }
.groups { display: grid; gap: 1rem; }
.group { display: grid; gap: .3rem; align-items: start; }
.of-1 .group { grid-template-columns: 1fr; } .of-2 .group { grid-template-columns: 1fr 1fr; }
.of-4 .group { grid-template-columns: repeat(4, 1fr); }
.of-1 { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
.of-2 { grid-template-columns: repeat(auto-fill, minmax(18.3rem, 1fr)); }
.of-4 { grid-template-columns: repeat(auto-fill, minmax(36rem, 1fr)); }
@media (max-width: 40rem) { .of-4 { grid-template-columns: 1fr; }
  .of-4 .group { grid-template-columns: 1fr 1fr; } }
.small { image-rendering: pixelated; }
.marked img { outline: 3px solid #b3261e; outline-offset: -3px; } .marked figcaption { color: #b3261e; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: #f4f6f9; padding: .8rem; font-size: .8rem; }
</style></head><body>
<h1>{{ title }}</h1>
{% macro table(rows) %}{% if rows %}{% set of = rows | column_classes %}
<div class="scroll"><table><tr>
{%- for name in rows[0] %}<th{{ of[name] }}>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>
{%- for name, value in row.items() %}<td{{ of[name] }}>{{ value | number }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% else %}<p>None.</p>{% endif %}{% endmacro %}
{% macro plot(png, title) %}<figure><img src="{{ png | data_uri }}" alt="{{ title }}"></figure>{% endmacro %}
"""

_FOOT = "</body></html>\n"

_LONG = 26
"""Letters, beyond which a cell is wrapped."""


def write_page(path: Path, title: str, body: str, **values: Any) -> None:
    """Write a page.

    Args:
        body: Jinja template. There are for it `table(rows)`, which scrolls sideways, `plot(png, title)`,
            and the filters `number` and `data_uri`.
        values: what the template names; text is escaped.
    """
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.filters |= {
        "number": format_value,
        "data_uri": data_uri,
        "column_classes": _column_classes,
    }
    page = environment.from_string(_HEAD + body + _FOOT).render(title=title, **values)
    path.write_text(page, encoding="utf-8")


def _column_classes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Markup]:
    """Attributes of the columns' cells: words stand on the left, and long ones are wrapped.

    The first column stands on the left anyway.

    >>> _column_classes([{"a": "word", "b": "+0.1 (0 to 0.2)", "c": "cannot tell", "d": "word " * 9}])
    {'a': Markup(''), 'b': Markup(''), 'c': Markup(' class="text"'), 'd': Markup(' class="text long"')}
    """
    classes = {}
    for index, name in enumerate(rows[0]):
        words = [len(row[name]) for row in rows if _is_text(row[name])]
        found = ["text"] if words and index else []
        found += ["long"] if max(words, default=0) > _LONG else []
        classes[name] = Markup(' class="{}"').format(" ".join(found)) if found else Markup()
    return classes


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value[:1].isalpha()
