"""What is on a mirror: its artifacts, whether they are whole, what keeps them, and what may go.

First an artifact's manifest goes, to `.trash/<kind>/<key>/<attempt>.json`: the artifact is gone at once, and
no pull that has begun is cut off. Its files go when that has lain there for the grace, like those of a push
that never came to its end. Storage has no locks: a push that begins and ends within the moment in which old
files of its own are deleted says that it is done, and `verify` finds what it lacks.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property

from data.artifacts.bucket import VARIABLE, Entry
from data.artifacts.garbage import Garbage, first
from data.artifacts.inventory import KEY
from data.artifacts.listing import Found, State
from data.artifacts.manifest import MANIFEST_NAME, Manifest
from data.artifacts.records import Record
from data.artifacts.remote import Remote, attempt, wrong_sizes
from data.artifacts.roots import PINS_FOLDER, Holdings, Keep, kept
from data.artifacts.store import ArtifactStore
from data.artifacts.trash import TRASH_FOLDER
from data.errors import ArtifactMissing, RemoteDamaged

_THREADS = 8


class RemoteContents:
    """What one listing of a mirror found; manifests and records are read when they are asked for.

    All methods raise `ServiceUnavailable` where the mirror cannot be used.

    Attributes:
        place: the mirror's address.
        repaired: what `repair` has done with artifacts.

    Raises:
        ArtifactMissing: no run is recorded there, so that it may be anything.
    """

    def __init__(self, remote: Remote):
        self.place = remote.url
        self.repaired = "taken away there: pushed by a machine that has them they are there again"
        self._remote = remote
        self._bucket = remote.bucket
        self._changed: dict[str, float] = {}
        self._attempts: dict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
        self._trashed: dict[tuple[str, str], float] = {}
        self._text = cache(lambda item: self._bucket.read(f"{item}/{MANIFEST_NAME}"))
        self._record = cache(remote.record)  # never changed
        self.read = cache(self._read)
        if not remote.record_ids():
            raise ArtifactMissing(
                f"no run is recorded on {remote.url}: `detdiffusion push` puts one there, or correct "
                f"{VARIABLE}"
            )
        for name, entry in self._bucket.listed().items():
            match name.split("/"):
                case [kind, key, item] if KEY.fullmatch(key) and item == MANIFEST_NAME:
                    self._changed[f"{kind}/{key}"] = entry.changed
                case [kind, key, item, *rest] if KEY.fullmatch(key) and KEY.fullmatch(item):
                    self._attempts[f"{kind}/{key}", item]["/".join(rest)] = entry
                case [folder, kind, key, item] if folder == TRASH_FOLDER and KEY.fullmatch(key):
                    self._trashed[f"{kind}/{key}", item.removesuffix(".json")] = entry.changed

    @property
    def artifacts(self) -> list[str]:
        """`kind/key` of all that there are, whole or not."""
        return sorted(self._changed)

    @property
    def references(self) -> set[str]:
        """Those, and what was not pushed to its end."""
        return {*self._changed, *(reference for reference, _ in self._attempts)}

    def records(self, known: Collection[str] = ()) -> list[Record]:
        """Those that are there now, the newest first.

        Args:
            known: ids of those that are left out.

        Raises:
            InvalidRecord: one is damaged, or of a newer version of this program.
        """
        ids = [run for run in self._remote.record_ids() if run not in known]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._record, ids))

    def pins(self) -> set[str]:
        """What is pinned there now, as `pin` was given it."""
        return set(self._bucket.listed(PINS_FOLDER))

    def found(self) -> Iterator[Found]:
        """All artifacts, and pushes that did not come to their end."""
        for reference, manifest in self._manifests:
            files = self._files(reference)
            is_whole = manifest is not None and not wrong_sizes(manifest, files)
            state: State = "ok" if is_whole else "damaged"
            yield Found(reference, state, _size(files), self._changed[reference])
        for place, files in self._attempts.items():
            if not self._is_current(*place) and place not in self._trashed:
                yield Found(place[0], "unfinished", _size(files), _newest(files))

    def beyond(self, known: Collection[str]) -> list[Found]:
        """Artifacts other than those, by the listing alone: nothing of them is read."""
        sizes: Counter[str] = Counter()
        for (reference, _), files in self._attempts.items():
            sizes[reference] += _size(files)
        return [
            Found(reference, "remote", sizes[reference], changed)
            for reference, changed in self._changed.items()
            if reference not in known
        ]

    def damage(self, reference: str, *, fast: bool = False) -> list[str]:
        """Files of an artifact that are missing or are not what was put there.

        Args:
            fast: look at sizes alone.
        """
        text = self._text(reference)
        return self._damage(reference, text, self._files(reference), fast=fast) if text else []

    def where(self, reference: str, name: str) -> str:
        """Address of an artifact's file."""
        text = self._text(reference)
        inner = f"{attempt(text)}/" if text and name != MANIFEST_NAME else ""
        return f"{self.place}/{reference}/{inner}{name}"

    def repair(self, references: Iterable[str]) -> list[str]:
        """Delete the damaged files of artifacts that are still damaged, and move these to the trash.

        A machine that pushed or pulled one sends little more than those files when it pushes it again.

        Returns:
            Those that were moved.
        """
        done = []
        for reference in references:
            text = self._bucket.read(f"{reference}/{MANIFEST_NAME}")
            if text is None:
                continue
            prefix = f"{reference}/{attempt(text)}"
            files = self._bucket.listed(prefix)
            if names := self._damage(reference, text, files, fast=False):
                # First the files: a push must not find them and take them for whole.
                if there := [f"{prefix}/{name}" for name in names if name in files]:
                    self._bucket.delete(there)
                self._move(reference, text)
                done.append(reference)
        return done

    def backs_up(self, store: ArtifactStore, keep: Keep) -> set[str]:
        """Artifacts of a store, `kind/key`, that are whole here, have the same files, and are kept.

        Raises:
            PipelineError: what a run or an artifact needs is not known.
        """
        whole = {item.reference for item in self.found() if item.state == "ok"}
        found = set()
        for reference in whole & self.kept(replace(keep, grace=timedelta(0))).keys():
            here, there = self.read(reference), store.manifest(reference)
            if here and there and here.files == there.files:
                found.add(reference)
        return found

    def kept(self, keep: Keep) -> dict[str, str]:
        """What must stay, `kind/key`, and one reason for each.

        Raises:
            InvalidRecord: what any one run needs is not known.
            RemoteDamaged: what any one artifact needs is not known.
        """
        there = Holdings(
            changed=self._changed,
            inputs={item: self._inputs(item, manifest) for item, manifest in self._manifests},
            records=self.records(),
            pins=self.pins(),
        )
        return kept(there, keep, datetime.now(UTC))

    def garbage(self, keep: Keep, free: int | None = None) -> list[Garbage]:
        """Find artifacts that nothing keeps, the oldest first.

        Args:
            free: bytes that suffice; None for all that there are.

        Raises:
            PipelineError: what a run or an artifact needs is not known.
        """
        needed = self.kept(keep)
        found = [
            Garbage(item, item, _size(self._files(item)), self._changed[item])
            for item in self.artifacts
            if item not in needed
        ]
        return first(sorted(found, key=lambda item: item.changed), free)

    def earlier(self, keep: Keep) -> list[Garbage]:
        """Find what was moved to the trash, or pushed in part, before the grace."""
        since = (datetime.now(UTC) - keep.grace).timestamp()
        found = []
        for place in {*self._attempts, *self._trashed}:
            files = self._attempts.get(place, {})
            changed = max(_newest(files), self._trashed.get(place, 0))
            if changed <= since and not self._is_current(*place):
                found.append(Garbage(place[0], "/".join(place), _size(files), changed))
        return found

    def collect(self, keep: Keep, found: Iterable[Garbage]) -> list[Garbage]:
        """Delete what `earlier` finds, and move to the trash what `garbage` found.

        Each is looked at again: what a run or a pin has come to need, or was pushed again otherwise, stays.

        Returns:
            What was moved.

        Raises:
            PipelineError: what a run or an artifact needs is not known.
        """
        self.kept(keep)  # before anything is deleted
        for item in self.earlier(keep):
            reference, _, number = item.path.rpartition("/")
            files = self._bucket.listed(item.path)
            text = self._bucket.read(f"{reference}/{MANIFEST_NAME}") or b""
            if _newest(files) <= item.changed and attempt(text) != number:
                self._bucket.delete([f"{item.path}/{name}" for name in files])
                self._bucket.delete([_trashed(reference, number)])
        moved = []
        for item in found:
            known = self._text(item.reference)
            there = self._bucket.read(f"{item.reference}/{MANIFEST_NAME}")
            if known and there == known and item.reference not in self.kept(keep):
                self._move(item.reference, known)
                moved.append(item)
        return moved

    def pin(self, reference: str) -> None:
        """Keep an artifact (`kind/key`) or a run (`runs/id`) there, and all that it is made from."""
        self._bucket.put(f"{PINS_FOLDER}/{reference}", b"")

    def unpin(self, reference: str) -> None:
        """Take a pin away, if there is one."""
        self._bucket.delete([f"{PINS_FOLDER}/{reference}"])

    def _move(self, reference: str, text: bytes) -> None:
        """Move a manifest to the trash."""
        self._bucket.put(_trashed(reference, attempt(text)), text)
        self._bucket.delete([f"{reference}/{MANIFEST_NAME}"])

    def _damage(
        self, reference: str, text: bytes, files: Mapping[str, Entry], *, fast: bool
    ) -> list[str]:
        manifest = self._parsed(reference, text)
        if manifest is None:
            return [MANIFEST_NAME]
        wrong = wrong_sizes(manifest, files)
        right = [name for name in manifest.files if name not in wrong and not fast]
        prefix = f"{reference}/{attempt(text)}"

        def is_intact(name: str) -> bool:
            digest = hashlib.sha256()
            for part in self._bucket.parts(f"{prefix}/{name}", manifest.files[name].size):
                digest.update(part)
            return digest.hexdigest() == manifest.files[name].sha256

        with ThreadPoolExecutor(_THREADS) as pool:
            intact = dict(zip(right, pool.map(is_intact, right), strict=True))
        return wrong + [name for name in right if not intact[name]]

    def _read(self, reference: str) -> Manifest | None:
        """An artifact's manifest; None where it is missing or cannot be read."""
        text = self._text(reference)
        return self._parsed(reference, text) if text else None

    def _parsed(self, reference: str, text: bytes) -> Manifest | None:
        try:
            return self._remote.parsed(reference, text)
        except RemoteDamaged:
            return None

    @cached_property
    def _manifests(self) -> list[tuple[str, Manifest | None]]:
        """Of all artifacts that are still there."""
        with ThreadPoolExecutor(_THREADS) as pool:
            found = zip(self.artifacts, pool.map(self.read, self.artifacts), strict=True)
            return [(item, manifest) for item, manifest in found if self._text(item) is not None]

    def _inputs(self, reference: str, manifest: Manifest | None) -> list[str]:
        if manifest is not None:
            return list(manifest.inputs.values())
        raise RemoteDamaged(
            f"{self.place}/{reference}/{MANIFEST_NAME} cannot be read, so nobody knows what it needs: "
            "`detdiffusion verify --remote --repair` moves it away"
        )

    def _is_current(self, reference: str, number: str) -> bool:
        text = self._text(reference) if reference in self._changed else None
        return text is not None and attempt(text) == number

    def _files(self, reference: str) -> dict[str, Entry]:
        """Of the artifact's manifest, as they were listed."""
        text = self._text(reference)
        return {} if text is None else self._attempts.get((reference, attempt(text)), {})


def _trashed(reference: str, number: str) -> str:
    return f"{TRASH_FOLDER}/{reference}/{number}.json"


def _size(files: dict[str, Entry]) -> int:
    return sum(entry.size for entry in files.values())


def _newest(files: dict[str, Entry]) -> float:
    return max((entry.changed for entry in files.values()), default=0.0)
