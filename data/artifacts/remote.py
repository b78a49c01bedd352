"""A mirror of the store on object storage, from which several machines fill theirs.

An artifact's files lie at `<kind>/<key>/<attempt>/…`, where the attempt is a digest of its manifest. That
comes last, at `<kind>/<key>/manifest.json`, by a write that succeeds only where there is none: so an artifact
is there whole or not at all, and what two machines make of one key never mixes.
"""

import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from data.artifacts.bucket import PROBE, VARIABLE, Bucket, Entry
from data.artifacts.comparison import differences
from data.artifacts.files import storage_errors
from data.artifacts.manifest import MANIFEST_NAME, FileRecord, Manifest
from data.artifacts.records import RECORDS_FOLDER, Record, add_record, parse_record, record_name
from data.artifacts.roots import PINS_FOLDER
from data.artifacts.store import ArtifactStore, is_intact
from data.artifacts.trash import TRASH_FOLDER
from data.errors import (
    ArtifactMissing,
    InvalidConfig,
    RemoteConflict,
    RemoteDamaged,
    ServiceUnavailable,
)
from data.progress import Progress, silent

_THREADS = 4
_TRIES = 3
"""To push what a collection takes away meanwhile."""

_SECONDS_BETWEEN_REPORTS = 1.0

_T = TypeVar("_T")


def default_remote() -> "Remote | None":
    """The mirror that `DETDIFFUSION_REMOTE` names, where it is set.

    Raises:
        InvalidConfig: it is no address of a mirror.
    """
    url = os.environ.get(VARIABLE)
    return Remote(url) if url else None


def required_remote() -> "Remote":
    """The mirror that `DETDIFFUSION_REMOTE` names.

    Raises:
        InvalidConfig: it is not set, or no address of a mirror.
    """
    remote = default_remote()
    if remote is None:
        raise InvalidConfig(f"no remote: set {VARIABLE}, for instance to s3://bucket/prefix")
    return remote


class Remote:
    """A mirror of artifacts and records.

    Args:
        url: of its `Bucket`.

    Raises:
        InvalidConfig: the address is of another form.
    """

    def __init__(self, url: str):
        self.bucket = Bucket(url)
        self.url = url

    def push(self, store: ArtifactStore, manifest: Manifest, progress: Progress = silent) -> bool:
        """Put a local artifact there; what an interrupted push has put there already stays.

        The smallest file is put again first, so that no collection takes the rest for given up.

        Returns:
            Whether it was not there.

        Raises:
            ArtifactMissing: a local file is missing or damaged.
            RemoteConflict: an artifact of this key with other files is there.
            ServiceUnavailable: the mirror cannot be used.
            StorageError: a local file cannot be read.
        """
        name = f"{manifest.reference}/{MANIFEST_NAME}"
        folder = store.root / manifest.reference
        with storage_errors(store.root):
            try:
                own = (folder / MANIFEST_NAME).read_bytes()
            except (FileNotFoundError, NotADirectoryError) as error:
                raise _not_pushed(folder / MANIFEST_NAME) from error
        there = self.bucket.read(name)
        if there is not None:
            self._agree(manifest, there)
        prefix = f"{manifest.reference}/{attempt(there or own)}"
        lacking = wrong_sizes(manifest, self.bucket.listed(prefix))
        if there is not None and not lacking:
            return False
        self.bucket.probe()

        def put(file: str) -> None:
            path = folder / file
            with storage_errors(store.root):
                if not is_intact(path, manifest.files[file]):
                    raise _not_pushed(path)
            self.bucket.put(f"{prefix}/{file}", path)

        smallest = sorted(manifest.files, key=lambda file: manifest.files[file].size)[:1]
        _each(put, smallest, progress, "files pushed")
        lacking = [file for file in lacking if file not in smallest]
        for _ in range(_TRIES):
            _each(put, lacking, progress, "files pushed")
            self._agree(manifest, self.bucket.create(name, there or own))
            lacking = wrong_sizes(manifest, self.bucket.listed(prefix))
            if not lacking:
                return True
        raise ServiceUnavailable(
            f"{self.url}/{prefix} loses files while it is pushed: push again when nobody collects there"
        )

    def pull(
        self, store: ArtifactStore, kind: str, key: str, progress: Progress = silent
    ) -> Manifest | None:
        """Fill the store with an artifact, whose lock the caller holds; None if the mirror has none.

        Raises:
            RemoteDamaged: what is there is not what was put there.
            ServiceUnavailable: the mirror cannot be used.
            StorageError: the store cannot be written to.
        """
        text = self.bucket.read(f"{kind}/{key}/{MANIFEST_NAME}")
        if text is None:
            return None
        manifest = self.parsed(f"{kind}/{key}", text)
        prefix = f"{manifest.reference}/{attempt(text)}"
        if wrong := wrong_sizes(manifest, self.bucket.listed(prefix)):
            raise self._damaged(f"{prefix}/{wrong[0]}")
        out = store.work(kind, key) / attempt(text)

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
            return self.bucket.read(f"{reference}/{MANIFEST_NAME}") is not None

        with ThreadPoolExecutor(_THREADS) as pool:
            there = pool.map(is_there, references)
            return {item for item, found in zip(references, there, strict=True) if found}

    def references(self) -> set[str]:
        """`kind/key` of all artifacts, those too whose push did not come to its end.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        others = {RECORDS_FOLDER, PINS_FOLDER, TRASH_FOLDER}
        kinds = (kind for kind in self.bucket.folders() if kind not in others)
        return {reference for kind in kinds for reference in self.bucket.folders(kind)}

    def push_record(self, root: Path, run: str) -> None:
        """Put the record of a run, by its id, there.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        self.bucket.probe()
        self.bucket.put(record_name(run), root / record_name(run))

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
        names = (name for name in self.bucket.listed(RECORDS_FOLDER) if name.endswith(".json"))
        return sorted((name.removesuffix(".json") for name in names), reverse=True)

    def record(self, run: str) -> Record:
        """Read the record of a run, by its id.

        Raises:
            InvalidRecord: it is damaged, or of a newer version of this program.
            ServiceUnavailable: the mirror cannot be used.
        """
        name = record_name(run)
        return parse_record(self.bucket.read(name) or b"", f"{self.url}/{name}", run)

    def check(self) -> None:
        """Refuse a mirror that does not answer, or lets what is there be replaced.

        Raises:
            ServiceUnavailable: the mirror cannot be used.
        """
        self.bucket.read(PROBE)
        self.bucket.probe()

    def _fetch(self, prefix: str, folder: Path, name: str, record: FileRecord) -> None:
        """Fetch a file; one that an interrupted pull has fetched stays."""
        path = folder / name
        if is_intact(path, record):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.writelines(self.bucket.parts(f"{prefix}/{name}", record.size))
        if not is_intact(path, record):
            raise self._damaged(f"{prefix}/{name}")

    def _agree(self, manifest: Manifest, there: bytes) -> None:
        """Refuse an artifact of the mirror that has other files than one of the same key."""
        other = self.parsed(manifest.reference, there)
        if other.files == manifest.files:
            return
        differing = list(differences(other.files, manifest.files))
        raise RemoteConflict(
            f"{self.url} has {manifest.reference} with other content, made on {other.created_at[:10]} "
            f"({len(differing)} files differ, {differing[0]} is one): both stay; to take that one move the "
            "local folder away and pull, to replace it delete its manifest.json there and push"
        )

    def parsed(self, reference: str, text: bytes) -> Manifest:
        """An artifact's manifest from its text.

        Raises:
            RemoteDamaged: it is none, or another's.
        """
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError:
            manifest = None
        if (
            manifest is None
            or {manifest.reference, manifest.identity.reference} != {reference}
            or any({"..", "/"}.intersection(PurePosixPath(name).parts) for name in manifest.files)
        ):
            raise self._damaged(f"{reference}/{MANIFEST_NAME}")
        return manifest

    def _damaged(self, name: str) -> RemoteDamaged:
        return RemoteDamaged(
            f"{self.url}/{name} is missing or not what was put there: `detdiffusion verify --remote "
            "--repair`, then push from a machine that has the artifact"
        )


def _not_pushed(path: Path) -> ArtifactMissing:
    return ArtifactMissing(
        f"{path} is missing or damaged and is not pushed: run again, which makes it anew"
    )


def attempt(manifest: bytes) -> str:
    """What the files of a manifest lie under."""
    return hashlib.sha256(manifest).hexdigest()[:32]


def wrong_sizes(manifest: Manifest, there: Mapping[str, Entry]) -> list[str]:
    """Files of an artifact that are missing or do not have their recorded size."""
    return [
        name
        for name, record in manifest.files.items()
        if name not in there or there[name].size != record.size
    ]


def _each(do: Callable[[_T], Any], items: Collection[_T], progress: Progress, status: str) -> None:
    """Do something with each, several at a time."""
    reported = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, _ in enumerate(pool.map(do, items), 1):
            if done == len(items) or time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                progress(done, len(items), status)
