"""What options say that are wrong."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt, ValidationError, model_validator

from data.option_errors import HintingModel, OneOf


class Square(HintingModel):
    side: int
    colour: str = "red"


class Circle(HintingModel):
    radius: int
    centre: tuple[int, int]
    colours: tuple[str, ...] = ()


class Span(HintingModel):
    first: int = 0
    last: int = 0

    @model_validator(mode="after")
    def _some_are_left(self):
        if self.last < self.first:
            raise ValueError("nothing is left")
        return self


class Drawing(HintingModel):
    shape: Annotated[Path | Square | Circle, OneOf] | None = None
    more: dict[str, Annotated[Path | Square | Circle, OneOf]] = Field(default_factory=dict)
    files: Annotated[Path | tuple[Path, ...], OneOf] = ()
    parts: Annotated[Literal["auto"] | PositiveInt, OneOf] = "auto"
    span: Annotated[Literal["all", "none"] | Span, OneOf] = "all"


INTEGER = "Input should be a valid integer, unable to parse string as an integer"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"shape": {"colour": "red"}}, ["shape.side: Field required"]),
        ({"shape": {"radius": 1}}, ["shape.centre: Field required"]),
        ({"more": {"a": {"side": "x"}}}, [f"more.a.side: {INTEGER}"]),
        (
            {"shape": {"side": 1, "colours": "red"}},
            ["shape.colours: unknown option; did you mean colour?"],
        ),
        (
            {"shape": {"radius": 1, "centre": [0, 0], "colour": "red"}},
            ["shape.colour: unknown option; did you mean colours?"],
        ),
        ({"shape": 5}, ["shape: Input should be a path or a table"]),
        ({"files": 5}, ["files: Input should be a path or a list"]),
        (
            {"files": ["a", 5]},
            ["files.1: Input is not a valid path for <class 'pathlib.Path'>"],
        ),
        ({"parts": 0}, ["parts: Input should be 'auto' or greater than 0"]),
        (
            {"parts": "few"},
            [f"parts: Input should be 'auto' or {INTEGER.removeprefix('Input should be ')}"],
        ),
        ({"span": {"first": 2}}, ["span: Value error, nothing is left"]),
        ({"span": {"frist": 2}}, ["span.frist: unknown option; did you mean first?"]),
        ({"span": "al"}, ["span: Input should be 'all' or 'none' or a table"]),
        (
            {"shape": {"radius": 1}, "spam": 1},
            ["shape.centre: Field required", "spam: unknown option; did you mean span?"],
        ),
    ],
)
def test_each_mistake_is_one_sentence_of_the_member_that_fits(given, expected):
    with pytest.raises(ValidationError) as found:
        Drawing.model_validate(given)
    errors = found.value.errors()
    assert [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in errors] == expected


@pytest.mark.parametrize(
    "given",
    [{"shape": "a"}, {"shape": {"side": 1}}, {"shape": None, "files": ["a", "b"]}, {"parts": 3}],
)
def test_what_fits_a_member_is_taken_and_survives_json(given):
    drawing = Drawing.model_validate(given)
    assert Drawing.model_validate_json(drawing.model_dump_json()) == drawing
