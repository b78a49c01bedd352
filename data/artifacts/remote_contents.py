"""What is on a mirror: its artifacts, whether they are whole, what keeps them, and what may go.

First an artifact's manifest goes, to `.trash/<kind>/<key>/<attempt>.json`: the artifact is gone at once, and
no pull that has begun is cut off. Its files go when that has lain there for the grace, like those of a push
that never came to its end.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import cache

from data.artifacts.bucket import Entry
from data.artifacts.garbage import Garbage, first
from data.artifacts.inventory import KEY
from data.artifacts.listing import Found, State
from data.artifacts.manifest import MANIFEST_NAME, Manifest
from data.artifacts.records import Record
from data.artifacts.remote import Remote, attempt, wrong_sizes
from data.artifacts.roots import PINS_FOLDER, Holdings, Keep, kept
from data.artifacts.trash import TRASH_FOLDER
from data.errors import RemoteDamaged

_THREADS = 8


class RemoteContents:
    """What one listing of a mirror found; manifests and records are read when they are asked for.

    All methods raise `ServiceUnavailable` where the mirror cannot be used.

    Attributes:
        place: the mirror's address.
        repaired: what `repair` has done with artifacts.
    """

    def __init__(self, remote: Remote):
        self.place = remote.url
        self.repaired = (
            "have lost their damaged files there: `detdiffusion push` puts them there again"
        )
        self._remote = remote
        self._bucket = remote.bucket
        self._changed: dict[str, float] = {}
        self._attempts: dict[tuple[str, str], dict[str, Entry]] = defaultdict(dict)
        self._trashed: dict[tuple[str, str], float] = {}
        self._text = cache(lambda item: self._bucket.read(f"{item}/{MANIFEST_NAME}") or b"")
        self._record = cache(remote.record)  # never changed
        for name, entry in self._bucket.listed().items():
            match name.split("/"):
                case [kind, key, item] if KEY.fullmatch(key) and item == MANIFEST_NAME:
                    self._changed[f"{kind}/{key}"] = entry.changed
                case [kind, key, item, *rest] if KEY.fullmatch(key) and KEY.fullmatch(item):
                    self._attempts[f"{kind}/{key}", item]["/".join(rest)] = entry
                case [folder, kind, key, item] if folder == TRASH_FOLDER:
                    self._trashed[f"{kind}/{key}", item.removesuffix(".json")] = entry.changed

    @property
    def artifacts(self) -> list[str]:
        """`kind/key` of all that there are, whole or not."""
        return sorted(self._changed)

    @property
    def references(self) -> set[str]:
        """Those, and what was not pushed to its end."""
        return {*self._changed, *(reference for reference, _ in self._attempts)}

    def records(self) -> list[Record]:
        """Those that are there now, the newest first.

        Raises:
            InvalidRecord: one is damaged, or of a newer version of this program.
        """
        return [self._record(run) for run in self._remote.record_ids()]

    def pins(self) -> set[str]:
        """What is pinned there now, as `pin` was given it."""
        return set(self._bucket.listed(PINS_FOLDER))

    def read(self, reference: str) -> Manifest | None:
        """An artifact's manifest; None where it is missing or cannot be read."""
        try:
            return self._remote.parsed(reference, self._text(reference))
        except RemoteDamaged:
            return None

    def found(self) -> Iterator[Found]:
        """All artifacts, and pushes that did not come to their end."""
        for reference, manifest in zip(self.artifacts, self._manifests(), strict=True):
            files = self._files(reference)
            is_whole = manifest is not None and not wrong_sizes(manifest, files)
            state: State = "ok" if is_whole else "damaged"
            yield Found(reference, state, _size(files), self._changed[reference])
        for place, files in self._attempts.items():
            if not self._is_current(*place) and place not in self._trashed:
                yield Found(place[0], "unfinished", _size(files), _newest(files))

    def damage(self, reference: str, *, fast: bool = False) -> list[str]:
        """Files of an artifact that are missing or are not what was put there.

        Args:
            fast: look at sizes alone.
        """
        manifest = self.read(reference)
        if manifest is None:
            return [MANIFEST_NAME]
        wrong = wrong_sizes(manifest, self._files(reference))
        right = [name for name in manifest.files if name not in wrong and not fast]
        prefix = f"{reference}/{attempt(self._text(reference))}"

        def is_intact(name: str) -> bool:
            digest = hashlib.sha256()
            for part in self._bucket.parts(f"{prefix}/{name}", manifest.files[name].size):
                digest.update(part)
            return digest.hexdigest() == manifest.files[name].sha256

        with ThreadPoolExecutor(_THREADS) as pool:
            intact = pool.map(is_intact, right)
            return wrong + [
                name for name, is_well in zip(right, intact, strict=True) if not is_well
            ]

    def repair(self, references: Iterable[str]) -> list[str]:
        """Delete the damaged files of artifacts, which the next push of them puts there again."""
        done = []
        for reference in references:
            names, files = self.damage(reference), self._files(reference)
            prefix = f"{reference}/{attempt(self._text(reference))}"
            if MANIFEST_NAME in names:
                self._trash(reference)
            elif there := [f"{prefix}/{name}" for name in names if name in files]:
                self._bucket.delete(there)
            done.append(reference)
        return done

    def kept(self, keep: Keep) -> dict[str, str]:
        """What must stay, `kind/key`, and one reason for each.

        Raises:
            InvalidRecord: what any one run needs is not known.
            RemoteDamaged: what any one artifact needs is not known.
        """
        pairs = zip(self.artifacts, self._manifests(), strict=True)
        there = Holdings(
            changed=self._changed,
            inputs={item: self._inputs(item, manifest) for item, manifest in pairs},
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
        """Find the files of what was moved to the trash, or pushed in part, before the grace."""
        since = (datetime.now(UTC) - keep.grace).timestamp()
        return [
            Garbage(place[0], "/".join(place), _size(files), changed)
            for place, files in self._attempts.items()
            if not self._is_current(*place)
            and (changed := max(_newest(files), self._trashed.get(place, 0))) <= since
        ]

    def collect(self, keep: Keep, found: Iterable[Garbage]) -> list[Garbage]:
        """Delete what `earlier` finds, and move to the trash what `garbage` found.

        Each is looked at again: what has come to be needed, or was pushed again, stays.

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
        return [
            item
            for item in found
            if item.reference not in self.kept(keep) and self._trash(item.reference)
        ]

    def pin(self, reference: str) -> None:
        """Keep an artifact (`kind/key`) or a run (`runs/id`) there, and all that it is made from."""
        self._bucket.put(f"{PINS_FOLDER}/{reference}", b"")

    def unpin(self, reference: str) -> None:
        """Take a pin away, if there is one."""
        self._bucket.delete([f"{PINS_FOLDER}/{reference}"])

    def _trash(self, reference: str) -> bool:
        """Move a manifest to the trash, unless it has become another's."""
        name, text = f"{reference}/{MANIFEST_NAME}", self._text(reference)
        if self._bucket.read(name) != text:
            return False
        self._bucket.put(_trashed(reference, attempt(text)), text)
        self._bucket.delete([name])
        return True

    def _manifests(self) -> list[Manifest | None]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.read, self.artifacts))

    def _inputs(self, reference: str, manifest: Manifest | None) -> list[str]:
        if manifest is not None:
            return list(manifest.inputs.values())
        raise RemoteDamaged(
            f"{self._remote.url}/{reference}/{MANIFEST_NAME} cannot be read, so nobody knows what it needs: "
            "`detdiffusion verify --remote --repair` moves it away"
        )

    def _is_current(self, reference: str, number: str) -> bool:
        return reference in self._changed and attempt(self._text(reference)) == number

    def _files(self, reference: str) -> dict[str, Entry]:
        return self._attempts.get((reference, attempt(self._text(reference))), {})


def _trashed(reference: str, number: str) -> str:
    return f"{TRASH_FOLDER}/{reference}/{number}.json"


def _size(files: dict[str, Entry]) -> int:
    return sum(entry.size for entry in files.values())


def _newest(files: dict[str, Entry]) -> float:
    return max((entry.changed for entry in files.values()), default=0.0)
