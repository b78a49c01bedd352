"""A mirror of the store on object storage, from which several machines fill theirs.

An artifact's files lie at `<kind>/<key>/<attempt>/…`, where the attempt is a digest of its manifest. That
comes last, at `<kind>/<key>/manifest.json`, by a write that succeeds only where there is none: so an artifact
is there whole or not at all, and what two machines make of one key never mixes.
"""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from data.artifacts.comparison import differences
from data.artifacts.manifest import MANIFEST_NAME, FileRecord, Manifest
from data.artifacts.records import RECORDS_FOLDER, Record, add_record, parse_record, record_name
from data.artifacts.store import ArtifactStore, is_intact, storage_errors
from data.errors import (
    ArtifactMissing,
    InvalidConfig,
    RemoteConflict,
    RemoteDamaged,
    ServiceUnavailable,
)
from data.progress import Progress, silent

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_VARIABLE = "DETDIFFUSION_REMOTE"
_SCHEMES = ("s3", "gs", "file")

_PROBE = ".probe"
_PART = 8_000_000
"""Bytes in one request of a long file; a request has two minutes."""

_THREADS = 4
_SECONDS_BETWEEN_REPORTS = 1.0
_PAUSES = (0.0, 1.0, 4.0)
"""Seconds before each try to write what must not be there yet."""

CONTENDERS = 32
"""Threads in a contest."""

_CAUSES = (r"<Code>(\w+)</Code>", r"status code: (\d+)", r"\bkind: (\w+),\s+source")
"""In an error of the library, whose full text has addresses, signatures and what the server says of them."""

_T = TypeVar("_T")


def default_remote() -> "Remote | None":
    """The mirror that `DETDIFFUSION_REMOTE` names, where it is set.

    Raises:
        InvalidConfig: it is no address of a mirror.
    """
    url = os.environ.get(_VARIABLE)
    return Remote(url) if url else None


def required_remote() -> "Remote":
    """The mirror that `DETDIFFUSION_REMOTE` names.

    Raises:
        InvalidConfig: it is not set, or no address of a mirror.
    """
    remote = default_remote()
    if remote is None:
        raise InvalidConfig(f"no remote: set {_VARIABLE}, for instance to s3://bucket/prefix")
    return remote


class Remote:
    """A mirror of artifacts and records; credentials are the environment's or the machine's.

    It is opened at its first use: what is opened does not outlive a fork.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `file:///folder`.

    Raises:
        InvalidConfig: the address is of another form.
    """

    def __init__(self, url: str):
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query:
            raise InvalidConfig(
                f"{_VARIABLE} has more in it than a place: give credentials in variables of their own, such "
                "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.scheme not in _SCHEMES or not (parts.netloc or parts.scheme == "file"):
            raise InvalidConfig(
                f"{_VARIABLE}={url}: write s3://bucket/prefix, gs://bucket/prefix or file:///folder"
            )
        self.url = url

    @cached_property
    def _bucket(self) -> "ObjectStore":
        from obstore.store import from_url  # noqa: PLC0415  # runs without a mirror go without

        if self.url.startswith("file:"):
            return from_url(self.url)
        return from_url(
            self.url,
            client_options={
                "timeout": timedelta(minutes=2),
                "allow_http": True,  # where AWS_ENDPOINT_URL asks for it
            },
            retry_config={"max_retries": 4, "retry_timeout": timedelta(minutes=1)},
        )

    def push(self, store: ArtifactStore, manifest: Manifest, progress: Progress = silent) -> bool:
        """Put a local artifact there; what an interrupted push has put there already stays.

        Returns:
            Whether it was not there.

        Raises:
            ArtifactMissing: a local file is missing or damaged.
            RemoteConflict: an artifact of this key with other files is there.
            ServiceUnavailable: the mirror cannot be used.
        """
        name = f"{manifest.reference}/{MANIFEST_NAME}"
        folder = store.root / manifest.reference
        own = (folder / MANIFEST_NAME).read_bytes()
        there = self._read(name)
        if there is not None:
            self._agree(manifest, there)
        prefix = f"{manifest.reference}/{_attempt(there or own)}"
        sizes = self._sizes(prefix)
        lacking = [item for item in manifest.files.items() if sizes.get(item[0]) != item[1].size]
        if there is not None and not lacking:
            return False
        self._probe()

        _each(lambda item: self._put(prefix, folder, *item), lacking, progress, "files pushed")
        if there is None:
            self._agree(manifest, self._create(name, own))
        return True

    def pull(
        self, store: ArtifactStore, kind: str, key: str, progress: Progress = silent
    ) -> Manifest | None:
        """Fill the store with an artifact, whose lock the caller holds; None if the mirror has none.

        Raises:
            RemoteDamaged: what is there is not what was put there.
            ServiceUnavailable: the mirror cannot be used.
            StorageError: the store cannot be written to.
        """
        text = self._read(f"{kind}/{key}/{MANIFEST_NAME}")
        if text is None:
            return None
        manifest = self._manifest(f"{kind}/{key}", text)
        prefix = f"{manifest.reference}/{_attempt(text)}"
        sizes = self._sizes(prefix)
        for name, record in manifest.files.items():
            if sizes.get(name) != record.size:
                raise self._damaged(f"{prefix}/{name}")
        out = store.work(kind, key) / _attempt(text)

        with storage_errors(store.root):
            out.mkdir(exist_ok=True)
            _each(
                lambda item: self._fetch(prefix, out, *item),
                manifest.files.items(),
                progress,
                "files pulled",
            )
            (out / MANIFEST_NAME).write_bytes(text)
            store.admit(manifest, out)
        return manifest

    def has(self, references: Collection[str]) -> set[str]:
        """Those artifacts (`kind/key`) that are there.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """

        def is_there(reference: str) -> bool:
            return self._read(f"{reference}/{MANIFEST_NAME}") is not None

        with ThreadPoolExecutor(_THREADS) as pool:
            there = pool.map(is_there, references)
            return {item for item, found in zip(references, there, strict=True) if found}

    def references(self) -> set[str]:
        """`kind/key` of all artifacts, those too whose push did not come to its end.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        kinds = (kind for kind in self._folders(None) if kind != RECORDS_FOLDER)
        return {reference for kind in kinds for reference in self._folders(kind)}

    def push_record(self, root: Path, run: str) -> None:
        """Put the record of a run, by its id, there.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        self._probe()
        with self._errors():
            self._bucket.put(record_name(run), root / record_name(run))

    def pull_record(self, root: Path, run: str) -> Record:
        """Fetch the record of a run, by its id, into a store.

        Raises:
            InvalidRecord: it is damaged, or of a newer version of this program.
            ServiceUnavailable: the mirror cannot be used.
            StorageError: the store cannot be written to.
        """
        record = self.record(run)
        add_record(root, record)
        return record

    def record_ids(self) -> list[str]:
        """Ids of the records that are there, the newest first.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        names = self._sizes(RECORDS_FOLDER)
        return sorted((name.removesuffix(".json") for name in names), reverse=True)

    def record(self, run: str) -> Record:
        """Read the record of a run, by its id.

        Raises:
            InvalidRecord: it is damaged, or of a newer version of this program.
            ServiceUnavailable: the mirror cannot be used.
        """
        name = record_name(run)
        return parse_record(self._read(name) or b"", f"{self.url}/{name}", run)

    def contest(self) -> None:
        """Refuse a server that lets more than one of many threads create the same object at once.

        Raises:
            ServiceUnavailable: likewise, or the mirror cannot be used.
        """
        name = f"{_PROBE}-{uuid.uuid4().hex}"
        with ThreadPoolExecutor(CONTENDERS) as pool:
            winners = sum(pool.map(self._creates, [name] * CONTENDERS))
        with suppress(ServiceUnavailable), self._errors():  # who may not delete leaves it
            self._bucket.delete(name)
        if winners != 1:
            raise ServiceUnavailable(
                f"{self.url}: of {CONTENDERS} that created one object at once {winners} were told that they "
                "did, so machines could overwrite each other's artifacts: use another server"
            )

    def check(self) -> None:
        """Refuse a mirror that does not answer, or lets what is there be replaced.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        self._read(_PROBE)
        self._probe()

    def _probe(self) -> None:
        """Refuse a server that ignores the condition that nothing be there; one object stays for this."""
        if self._creates(_PROBE) and self._creates(_PROBE):
            raise ServiceUnavailable(
                f"{self.url}: the server ignores the condition that nothing be there (If-None-Match: *), so "
                "machines would overwrite each other's artifacts: update it, or use another one"
            )

    def _creates(self, name: str, content: bytes = b"detdiffusion") -> bool:
        """Whether an object could be created: none was there."""
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415  # as above

        with self._errors():
            try:
                self._bucket.put(name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def _create(self, name: str, content: bytes) -> bytes:
        """Create an object; what is there in the end, which is another's where that came first.

        An error says little: the write may have been done and its answer lost. What is there decides.
        """
        failure = ServiceUnavailable(
            f"{self.url}/{name} can be neither written nor read: push again"
        )
        for pause in _PAUSES:
            time.sleep(pause)
            try:
                if self._creates(name, content):
                    return content
            except ServiceUnavailable as error:
                failure = error
            if (there := self._read(name)) is not None:
                return there
        raise failure

    def _put(self, prefix: str, folder: Path, name: str, record: FileRecord) -> None:
        """Put a local file there."""
        path = folder / name
        if not is_intact(path, record):
            raise ArtifactMissing(
                f"{path} is missing or damaged and is not pushed: run again, which makes it anew"
            )
        with self._errors():
            self._bucket.put(f"{prefix}/{name}", path, chunk_size=_PART, max_concurrency=4)

    def _fetch(self, prefix: str, folder: Path, name: str, record: FileRecord) -> None:
        """Fetch a file; one that an interrupted pull has fetched stays."""
        path = folder / name
        if is_intact(path, record):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, record.size, _PART):
                length = min(_PART, record.size - start)
                with self._errors():
                    part = self._bucket.get_range(f"{prefix}/{name}", start=start, length=length)
                file.write(part)
        if not is_intact(path, record):
            raise self._damaged(f"{prefix}/{name}")

    def _agree(self, manifest: Manifest, there: bytes) -> None:
        """Refuse an artifact of the mirror that has other files than one of the same key."""
        other = self._manifest(manifest.reference, there)
        if other.files == manifest.files:
            return
        differing = list(differences(other.files, manifest.files))
        raise RemoteConflict(
            f"{self.url} has {manifest.reference} with other content, made on {other.created_at[:10]} "
            f"({len(differing)} files differ, {differing[0]} is one): both stay; to take that one move the "
            "local folder away and pull, to replace it delete its manifest.json there and push"
        )

    def _manifest(self, reference: str, text: bytes) -> Manifest:
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError:
            manifest = None
        if (
            manifest is None
            or manifest.reference != reference
            or any({"..", "/"}.intersection(PurePosixPath(name).parts) for name in manifest.files)
        ):
            raise self._damaged(f"{reference}/{MANIFEST_NAME}")
        return manifest

    def _read(self, name: str) -> bytes | None:
        """An object's content; None where there is none."""
        with self._errors():
            try:
                return bytes(self._bucket.get(name).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def _sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of all objects of a prefix, by the rest of their names."""
        with self._errors():
            found = (item for batch in self._bucket.list(prefix, chunk_size=1000) for item in batch)
            return {item["path"].removeprefix(f"{prefix}/"): item["size"] for item in found}

    def _folders(self, prefix: str | None) -> list[str]:
        with self._errors():
            return list(self._bucket.list_with_delimiter(prefix)["common_prefixes"])

    def _damaged(self, name: str) -> RemoteDamaged:
        return RemoteDamaged(
            f"{self.url}/{name} is missing or not what was put there: delete it there and push again from a "
            "machine that has the artifact"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the library's errors into one that users can read and that holds no secret."""
        from obstore.exceptions import BaseError  # noqa: PLC0415  # as above

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise ServiceUnavailable(f"{self.url}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What a user can make of an error of the library."""
    text = str(error)
    causes = (match[1] for pattern in _CAUSES if (match := re.search(pattern, text)))
    cause = next(causes, type(error).__name__)
    if "NoSuchBucket" in text or "UnableToCanonicalize" in text:
        return f"there is no such bucket or folder: create it, or correct {_VARIABLE}"
    if re.search(r"/latest/api/token|metadata\.google|Missing(AccessKeyId|SecretAccessKey)", text):
        return (
            "there are no credentials: set them in the environment, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    if re.search(r"status code: 40[13]|<Code>ExpiredToken</Code>", text):
        return (
            f"access is refused ({cause}): check the credentials in the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do there"
        )
    return f"it does not answer as it should ({cause}): check the network and AWS_ENDPOINT_URL"


def _attempt(manifest: bytes) -> str:
    """What the files of a manifest lie under."""
    return hashlib.sha256(manifest).hexdigest()[:32]


def _each(do: Callable[[_T], Any], items: Collection[_T], progress: Progress, status: str) -> None:
    """Do something with each, several at a time."""
    reported = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, _ in enumerate(pool.map(do, items), 1):
            if done == len(items) or time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                progress(done, len(items), status)
