"""Typed records from the chunks of a COCO file; a record of another form is refused by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from data.coco.files import decode_json
from data.coco.stream import CocoIndex, Section, Span, UnprovenIndex, exact_index, fast_index
from data.errors import InvalidDataset
from data.workers import Workers

Record = TypeVar("Record", bound=msgspec.Struct)
Shared = TypeVar("Shared")
Result = TypeVar("Result")
Offence = tuple[str, str]
"""Reason and the record's id."""

_RAW_FIELDS = ("segmentation", "difficulty")


class AnyRecord(msgspec.Struct):
    """A record of which nothing is looked at."""


def open_index(path: Path) -> CocoIndex:
    """Find the records of a COCO file, images and categories for certain.

    Raises:
        InvalidDataset: the file cannot be read or is not a COCO file.
    """
    try:
        try:
            index = fast_index(path)
            for name in ("images", "categories"):
                for span in index.spans[name]:
                    decode_span(path, span, AnyRecord)
        except UnprovenIndex:
            return exact_index(path)
    except OSError as error:
        raise InvalidDataset(
            f"{path}: {error.strerror}; give the path of a COCO JSON file"
        ) from error
    return index


def decode_span(path: Path, span: Span, kind: type[Record]) -> list[Record]:
    """Decode a span whose records are all well formed.

    Raises:
        UnprovenIndex: they are not, or the span does not hold whole records.
    """
    try:
        return msgspec.json.decode(span.read(path), type=list[kind], strict=False)  # type: ignore[valid-type]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidDataset) as error:
        raise UnprovenIndex from error


def salvage_span(path: Path, span: Span, kind: type[Record]) -> tuple[list[Record], list[Offence]]:
    """Decode the records of a span from `exact_index` one by one.

    Returns:
        The well-formed records, and the others' reasons and ids.

    Raises:
        InvalidDataset: the span is not JSON.
    """
    try:
        return decode_span(path, span, kind), []
    except UnprovenIndex:
        pass
    try:
        values = decode_json(span.read(path))
    except ValueError as error:
        raise InvalidDataset(
            f"{path} is not a COCO file: no JSON between bytes {span.start} and {span.stop}: {error}"
        ) from error
    records: list[Record] = []
    offences: list[Offence] = []
    for value in values:
        record = _convert(value, kind)
        if isinstance(record, str):
            offences.append((record, _name_of(value)))
        else:
            records.append(record)
    return records, offences


def _convert(value: Any, kind: type[Record]) -> Record | str:
    """The typed record, or why it is none."""
    what = kind.__name__.removeprefix("Coco").lower()
    try:
        if isinstance(value, dict):
            raw = {key: _raw(value[key]) for key in _RAW_FIELDS if key in value}
            value = {**value, **raw}
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError as error:
        return f"{what} of another form: {error}"
    except (ValueError, RecursionError, TypeError):
        return f"{what} that is not UTF-8 or nested too deeply"


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def _name_of(value: Any) -> str:
    if isinstance(value, dict) and "id" not in value:
        return "without id"
    return repr(value["id"] if isinstance(value, dict) else value)[:80]


def map_spans(
    index: CocoIndex,
    section: Section,
    work: Callable[[Shared, "SpanJob"], Result],
    workers: Workers[Shared],
) -> Iterator[Result]:
    """Yield `work(shared, job)` for a section's spans, in order.

    The spans of a fast index are taken as they are found. From the first that does not hold whole,
    well-formed records on, the section is cut again exactly and its records are taken one by one.

    Raises:
        InvalidDataset: the file is not a COCO file.
    """
    spans = index.spans[section]
    jobs = [SpanJob(index.path, span, salvage=False) for span in spans]
    resume = spans[0].start if spans else 0
    try:
        for span, result in zip(spans, workers.map(work, jobs), strict=True):
            yield result
            resume = span.stop
    except UnprovenIndex:
        yield from workers.map(work, _exact_jobs(index, section, resume))


def _exact_jobs(index: CocoIndex, section: Section, resume: int) -> Iterator["SpanJob"]:
    path, exact = index.path, exact_index(index.path)
    if exact.extents() != index.extents():
        raise InvalidDataset(f"{path}: text inside it looks like images or annotations of its own")
    for span in exact.spans[section]:
        if span.start >= resume:
            yield SpanJob(path, span, salvage=True)
        elif span.stop > resume:
            yield SpanJob(path, Span(resume, span.stop, is_first=False), salvage=True)


@dataclass(frozen=True, slots=True)
class SpanJob:
    """A span to be decoded; with `salvage` record by record where need be."""

    path: Path
    span: Span
    salvage: bool

    def decode(self, kind: type[Record]) -> tuple[list[Record], list[Offence]]:
        """Decode the records; returns them, and the reasons and ids of those of another form.

        Raises:
            UnprovenIndex: some are not well formed, and they are not to be salvaged.
            InvalidDataset: the span is not JSON.
        """
        if self.salvage:
            return salvage_span(self.path, self.span, kind)
        return decode_span(self.path, self.span, kind), []
