"""Where the records of a COCO file lie, so that a file of any size is read in chunks of bytes.

A file is cut without being parsed: `fast_index` finds the three arrays by their keys and cuts them
where one record seems to end and the next to begin. It proves that the text around the arrays is one
JSON object with the arrays as its members; a chunk is proven when it parses. A brace inside a string
or a nested list can mislead it, never unnoticed: a chunk that does not parse sends the reader to
`exact_index`, which follows every bracket and string of the file.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from data.coco.files import decode_json
from data.errors import InvalidDataset

Section = Literal["images", "annotations", "categories"]
SECTIONS: tuple[Section, ...] = ("images", "annotations", "categories")

_KEYS = tuple(name.encode() for name in SECTIONS)

CHUNK_BYTES = 1 << 21
"""Bytes of records that are decoded at a time."""

_BOUNDARY = re.compile(rb"\}\s*,\s*\{")
_BOUNDARY_WINDOW = 1 << 16
_TOKEN = re.compile(
    rb"""((?:[^"\[\]{}]++ | "(?:[^"\\]++|\\.)*+" | \[[^"\[\]{}]*+\])*+) ([\[\]{}])""",
    re.DOTALL | re.VERBOSE,
)
"""Whole strings, numbers and flat arrays, then a bracket."""

_SEPARATOR = re.compile(rb"\s*,(?=\s*[^\s\]])")
_KEY_AT_END = re.compile(rb'"(images|annotations|categories)"\s*:\s*\Z')
_OPEN, _CLOSE = b"[{", b"]}"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class UnprovenIndex(Exception):
    """A guess about where records lie turned out wrong."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of a file that hold whole records of one array.

    Attributes:
        start: offset of the first byte; the comma after the span before it, unless it is the first.
        stop: offset after the last byte.
        is_first: whether the array begins here.
    """

    start: int
    stop: int
    is_first: bool

    def read(self, path: Path) -> bytearray:
        """Read the records as the text of a JSON array.

        Raises:
            InvalidDataset: there is no comma between this span and the one before it.
        """
        text = bytearray(self.stop - self.start + 2)
        with path.open("rb") as file:
            file.seek(self.start)
            file.readinto(memoryview(text)[1:-1])
        text[:1], text[-1:] = b"[", b"]"
        if not self.is_first:
            if comma := _SEPARATOR.match(text, 1):
                text[comma.end() - 1] = ord(" ")
            elif text[1:-1].strip():
                raise InvalidDataset(f"{path}: comma expected at byte {self.start}")
        return text


@dataclass(frozen=True, slots=True)
class CocoIndex:
    """The spans of each array of a file, in the file's order."""

    path: Path
    spans: dict[Section, tuple[Span, ...]]

    def extents(self) -> dict[Section, tuple[int, int]]:
        """Where each array that is not empty begins and ends."""
        found = {
            name: (parts[0].start, parts[-1].stop) for name, parts in self.spans.items() if parts
        }
        return {name: (start, stop) for name, (start, stop) in found.items() if start < stop}


def fast_index(path: Path) -> CocoIndex:
    """Guess where the records lie, in time that hardly depends on the file's size.

    Raises:
        UnprovenIndex: the guess does not hold.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        starts = sorted((_array_start(file, name, size), name) for name in SECTIONS)
        limits = [start for start, _ in starts[1:]] + [size]
        spans: dict[Section, tuple[Span, ...]] = {}
        for (start, name), limit in zip(starts, limits, strict=True):
            cuts = [start, *_guessed_cuts(file, start, limit)]
            cuts.append(_array_end(file, cuts[-1], limit))
            spans[name] = _spans(cuts)
        text = _without_records(file, spans, size)
        twice = any(
            text.count(b'"' + key + b'":') > 1 for key in _KEYS
        )  # perhaps nested, perhaps not
        if twice or _members(text, spans) is None:
            raise UnprovenIndex
    return CocoIndex(path, spans)


def exact_index(path: Path) -> CocoIndex:
    """Find the records by following every bracket and string of the file.

    Raises:
        InvalidDataset: the file is not one JSON object with the three arrays, each once.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        spans = _scan_sections(file, path, size)
        members = _members(_without_records(file, spans, size), spans)
        if members is None:
            raise InvalidDataset(f"{path} is not a COCO file: it is no JSON object, or cut short")
        for name in SECTIONS:
            if members.get(name, msgspec.UNSET) is msgspec.UNSET:
                raise InvalidDataset(f"{path} is not a COCO file: it has no {name!r}")
            if members[name] == []:
                spans[name] = ()
            elif name not in spans:
                raise InvalidDataset(f"{path} is not a COCO file: {name!r} is no array of objects")
    return CocoIndex(path, spans)


def _spans(cuts: Sequence[int]) -> tuple[Span, ...]:
    return tuple(Span(start, stop, is_first=start == cuts[0]) for start, stop in pairwise(cuts))


def _array_start(file: BinaryIO, name: str, size: int) -> int:
    """Offset after the bracket that opens an array, by its key: end of the file first, then all."""
    key = re.compile(rb'"' + name.encode() + rb'"\s*:\s*\[')
    file.seek(max(size - CHUNK_BYTES, 0))
    base, found = file.tell(), None
    for found in key.finditer(file.read()):  # the last one counts  # noqa: B007
        pass
    if found is not None:
        return base + found.end()
    overlap = b""
    file.seek(0)
    while block := file.read(CHUNK_BYTES):
        text = overlap + block
        if (at := text.find(b'"' + name.encode() + b'"')) >= 0 and (found := key.match(text, at)):
            return file.tell() - len(text) + found.end()
        overlap = text[-256:]
    raise UnprovenIndex


def _guessed_cuts(file: BinaryIO, start: int, limit: int) -> Iterator[int]:
    for target in range(start + CHUNK_BYTES, limit - CHUNK_BYTES // 2, CHUNK_BYTES):
        base = max(target - _BOUNDARY_WINDOW, start)
        file.seek(base)
        if found := _BOUNDARY.search(file.read(target - base)):
            start = base + found.start() + 1
            yield start


def _array_end(file: BinaryIO, start: int, limit: int) -> int:
    """Offset of the bracket that closes the array in which `start` lies between two records."""
    depth = 1
    for offset, bracket, _ in _brackets(file, start, limit):
        depth += 1 if bracket in _OPEN else -1
        if depth == 0:
            return offset
    raise UnprovenIndex


def _brackets(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Offset of every bracket that is neither in a string nor a flat array's; bracket; text before."""
    file.seek(start)
    base, text, step = start, b"", CHUNK_BYTES
    while block := file.read(min(step, stop - base - len(text))):
        text += block
        used = 0
        while found := _TOKEN.match(text, used):
            used = found.end()
            yield base + used - 1, found[2], found[1]
        step = CHUNK_BYTES if used else 2 * step  # a string longer than all that was read
        base, text = base + used, text[used:]


def _scan_sections(file: BinaryIO, path: Path, size: int) -> dict[Section, tuple[Span, ...]]:
    cuts: dict[Section, list[int]] = {}
    depth = 0
    section: Section | None = None
    for offset, bracket, before in _brackets(file, 0, size):
        depth += 1 if bracket in _OPEN else -1
        if section is not None and depth == 1:
            cuts[section].append(offset)
            section = None
        elif section is not None:
            if depth == 2 and offset - cuts[section][-1] >= CHUNK_BYTES:
                cuts[section].append(offset + 1)
        elif depth == 2 and bracket == b"[" and (key := _KEY_AT_END.search(before)):
            section = SECTIONS[_KEYS.index(key[1])]
            if section in cuts:
                raise InvalidDataset(f"{path} is not a COCO file: it has {section!r} twice")
            cuts[section] = [offset + 1]
    if depth or section:
        raise InvalidDataset(f"{path} is not a COCO file: it is cut short, or its brackets differ")
    return {name: _spans(found) for name, found in cuts.items()}


def _without_records(
    file: BinaryIO, spans: dict[Section, tuple[Span, ...]], size: int
) -> bytearray:
    """The file's text with each section's records replaced by its name."""
    arrays = sorted((parts[0].start, parts[-1].stop, name) for name, parts in spans.items())
    text, position = bytearray(), 0
    for start, stop, name in arrays:
        file.seek(position)
        text += file.read(start - position) + f'"{name}"'.encode()
        position = stop
    file.seek(position)
    text += file.read(size - position)
    return text.removeprefix(_BYTE_ORDER_MARK)


class _Members(msgspec.Struct):
    """The sections alone: whatever else the object holds is parsed, and not kept."""

    images: Any = msgspec.UNSET
    annotations: Any = msgspec.UNSET
    categories: Any = msgspec.UNSET


def _members(text: bytearray, spans: dict[Section, tuple[Span, ...]]) -> dict[str, Any] | None:
    """Members of the object that `text` is, if the sections are among them; None otherwise.

    The grammar has no context: if this text is an object with `["images"]` as its member, the file
    is one with the images' records in that place.
    """
    try:
        members = msgspec.structs.asdict(msgspec.json.decode(text, type=_Members))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        try:
            members = decode_json(text)
        except ValueError:
            return None
    if not isinstance(members, dict) or any(members.get(name) != [name] for name in spans):
        return None
    return members
