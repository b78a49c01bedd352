"""What is in a store, whether it is whole, what keeps it, and what may go; `RemoteContents` is a mirror's."""

from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime

from data.artifacts.garbage import Garbage, collect, garbage
from data.artifacts.inventory import artifacts, folders, require_store, tree, unfinished
from data.artifacts.listing import Found, in_store
from data.artifacts.manifest import Manifest
from data.artifacts.records import Record, read_records
from data.artifacts.roots import Keep, Roots, pin, pinned, unpin
from data.artifacts.store import ArtifactStore
from data.artifacts.trash import TRASH_FOLDER
from data.artifacts.verification import damaged_files, remove_damaged


class StoreContents:
    """A store as commands look at it.

    Attributes:
        place: where it is.
        repaired: what `repair` has done with artifacts.

    Raises:
        ArtifactMissing: it is none.
    """

    def __init__(self, store: ArtifactStore):
        require_store(store.root)
        self.store = store
        self.place = str(store.root)
        self.repaired = f"moved to {store.root / TRASH_FOLDER}: a run makes them again"

    @property
    def artifacts(self) -> list[str]:
        """`kind/key` of all that there are, whole or not."""
        return artifacts(self.store.root)

    @property
    def references(self) -> set[str]:
        """Those, and what is not finished."""
        return {*self.artifacts, *unfinished(self.store.root)}

    def records(self) -> list[Record]:
        """The newest first.

        Raises:
            InvalidRecord: one is damaged, or of a newer version of this program.
        """
        return list(read_records(self.store.root))

    def pins(self) -> set[str]:
        """What is pinned, as `pin` was given it."""
        return pinned(self.store.root)

    def read(self, reference: str) -> Manifest | None:
        """An artifact's manifest; None where it is missing or cannot be read."""
        return self.store.manifest(reference)

    def found(self) -> Iterator[Found]:
        """All artifacts and all work folders."""
        return in_store(self.store)

    def damage(self, reference: str, *, fast: bool = False) -> list[str]:
        """Files of an artifact that are missing or are not what they were.

        Args:
            fast: look at sizes alone.
        """
        return damaged_files(self.store, reference, fast=fast)

    def where(self, reference: str, name: str) -> str:
        """Path of an artifact's file."""
        return f"{self.place}/{reference}/{name}"

    def repair(self, references: Collection[str]) -> list[str]:
        """Move damaged artifacts to the trash, so that they are made again.

        Returns:
            Those that were moved; one that somebody works on stays.

        Raises:
            StorageError: the trash cannot be used.
        """
        return remove_damaged(self.store, references)

    def kept(self, keep: Keep) -> dict[str, str]:
        """What must stay, `kind/key`, and one reason for each.

        Raises:
            PipelineError: what a run or an artifact needs is not known.
        """
        return Roots(self.store, keep).kept(datetime.now(UTC))

    def garbage(self, keep: Keep, free: int | None = None) -> list[Garbage]:
        """Find what nothing keeps, the oldest first.

        Args:
            free: bytes that suffice; None for all that there are.

        Raises:
            PipelineError: what a run or an artifact needs is not known.
        """
        return garbage(self.store, keep, free)

    def earlier(self, keep: Keep) -> list[Garbage]:
        """Find what lies in the trash, whatever is kept."""
        names = [f"{TRASH_FOLDER}/{name}" for name in folders(self.store.root / TRASH_FOLDER)]
        return [Garbage("", name, *tree(self.store.root / name)) for name in names]

    def collect(
        self, keep: Keep, found: Sequence[Garbage], cached: Sequence[Garbage] = ()
    ) -> list[Garbage]:
        """Delete what `earlier` finds, and move to the trash what `garbage` found.

        Args:
            cached: what the mirror has too: deleted at once, though runs need it.

        Returns:
            What was moved.

        Raises:
            PipelineError: what a run or an artifact needs is not known, or the trash cannot be used.
        """
        return collect(self.store, keep, found, cached)

    def pin(self, reference: str) -> None:
        """Keep an artifact (`kind/key`) or a run (`runs/id`), and all that it is made from."""
        pin(self.store.root, reference)

    def unpin(self, reference: str) -> None:
        """Take a pin away, if there is one."""
        unpin(self.store.root, reference)
