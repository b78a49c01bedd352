"""Records of runs and studies: what was asked for, when, and the keys of its steps."""

import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.artifacts.files import durable_file, names_in, naming, storage_errors
from data.errors import InvalidRecord

RECORDS_FOLDER = "runs"
_FORMAT = 1

_TIME = "%Y%m%dT%H%M%S.%f"
"""With which a record's id begins."""


class RecordedStep(BaseModel):
    """One step of a run: its names in the run, and its artifact."""

    model_config = ConfigDict(frozen=True)

    names: tuple[str, ...]
    stages: tuple[str, ...]
    kind: str
    key: str

    @property
    def reference(self) -> str:
        """`kind/key` of its artifact."""
        return f"{self.kind}/{self.key}"


class Record(BaseModel):
    """A run or a study as it was started; never changed.

    Attributes:
        id: name of its file, less the ending; newer records have greater ones.
        format: of the record itself.
        what: a run, or a study of several.
        name: the preset, or the study's name.
        stage: that alone was to be run; None for all.
        created_at: ISO 8601, UTC, by the clock of its machine.
        options: of the run, or of each run of the study, plain JSON.
        steps: all of them, each after its inputs.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    id: str = Field(exclude=True)
    format: int = _FORMAT
    what: Literal["run", "study"]
    name: str
    created_at: str
    stage: str | None
    options: dict[str, Any]
    steps: tuple[RecordedStep, ...]

    @property
    def wanted(self) -> set[str]:
        """`kind/key` of what was to be there in the end: of its stage, or of all."""
        return {step.reference for step in self.steps if self.stage in (None, *step.stages)}

    def step(self, name: str) -> RecordedStep | None:
        """The step that has this name."""
        return next((item for item in self.steps if name in item.names), None)


def write_record(
    root: Path,
    what: Literal["run", "study"],
    name: str,
    options: dict[str, Any],
    steps: tuple[RecordedStep, ...],
    stage: str | None = None,
) -> Record:
    """Add a record to a store, as its newest.

    Raises:
        StorageError: the store cannot be written to.
    """
    now = datetime.now(UTC)
    record = Record(
        id=f"{_after_all(root, now):{_TIME}}-{uuid.uuid4().hex[:8]}",
        what=what,
        name=name,
        stage=stage,
        created_at=now.isoformat(),
        options=options,
        steps=steps,
    )
    add_record(root, record)
    return record


def _after_all(root: Path, now: datetime) -> datetime:
    """A time for an id: later than those of all records, also where the clock has been set back."""
    for newest in record_files(root)[:1]:
        with suppress(ValueError):  # somebody else's file
            time = datetime.strptime(newest.name.partition("-")[0], _TIME).replace(tzinfo=UTC)
            return max(now, time + timedelta(microseconds=1))
    return now


def add_record(root: Path, record: Record) -> None:
    """Write a record into a store.

    Raises:
        StorageError: the store cannot be written to.
    """
    path = root / record_name(record.id)
    with storage_errors(root):
        path.parent.mkdir(parents=True, exist_ok=True)
        with durable_file(path) as file:
            file.write(record.model_dump_json(indent=1).encode())


def record_name(run: str) -> str:
    """Where a record lies under a root, by its id."""
    return f"{RECORDS_FOLDER}/{run}.json"


def read_records(root: Path) -> Iterator[Record]:
    """The records of a store, the newest first.

    Raises:
        InvalidRecord: one is damaged, or of a newer version of this program.
    """
    yield from map(read_record, record_files(root))


def record_files(root: Path) -> list[Path]:
    """The files of a store's records, the newest first.

    Raises:
        StorageError: their folder cannot be read.
    """
    folder = root / RECORDS_FOLDER
    with storage_errors(root):
        there = names_in(folder)
    return [folder / name for name in reversed(there) if name.endswith(".json")]


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        InvalidRecord: it is damaged, or of a newer version of this program.
        StorageError: it cannot be read.
    """
    with storage_errors(path.parents[1]), naming(path):
        try:
            content = path.read_bytes()
        except IsADirectoryError as error:
            raise InvalidRecord(f"{path} is no record of a run, move it away: {error!r}") from error
    return parse_record(content, path, path.stem)


def parse_record(content: bytes, place: Path | str, run: str) -> Record:
    """Read a record's content.

    Args:
        place: where it lies.
        run: the record's id.

    Raises:
        InvalidRecord: it is damaged, or of a newer version of this program.
    """
    try:
        document = msgspec.json.decode(content)
        newer = document["format"] > _FORMAT
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InvalidRecord(f"{place} is no record of a run, move it away: {error!r}") from error
    if newer:
        raise InvalidRecord(
            f"{place} was written by a newer version of detdiffusion (format {document['format']}, "
            f"known up to {_FORMAT}): update, or use another DETDIFFUSION_HOME"
        )
    try:
        return Record.model_validate({**document, "id": run})
    except ValidationError as error:
        raise InvalidRecord(f"{place} is no record of a run, move it away: {error}") from error
