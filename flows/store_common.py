"""What the commands of the artifact store, and of its mirror, share."""

import time
from typing import Annotated, TypeAlias

import typer
from pydantic import ByteSize

from data.artifacts.remote import required_remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.store import ArtifactStore, default_root
from data.artifacts.store_contents import StoreContents

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}

Contents: TypeAlias = StoreContents | RemoteContents

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
RemoteOption = Annotated[bool, typer.Option("--remote", help="Of the remote, not of the store.")]


def opened(*, remote: bool) -> Contents:
    """The store of `DETDIFFUSION_HOME`, or the mirror of `DETDIFFUSION_REMOTE`.

    Raises:
        ArtifactMissing: there is no store.
        InvalidConfig: no mirror is named.
        ServiceUnavailable: the mirror cannot be used.
    """
    if remote:
        return RemoteContents(required_remote())
    return StoreContents(ArtifactStore(default_root()))


def short_name(reference: str, key: str = "") -> str:
    """How people read `kind/key`: with the beginning of the key that is given, or eight digits."""
    kind, _, whole = reference.partition("/")
    return f"{kind}/{key or whole[:8]}"


def size(count: int) -> str:
    """So many bytes, in the largest unit of which there is one."""
    return ByteSize(count).human_readable(decimal=True)


def age(changed: float) -> str:
    """How long ago that was, in the largest unit of which there is one.

    Args:
        changed: seconds since the epoch.
    """
    passed = max(time.time() - changed, 0)
    unit = next((name for name in ("d", "h", "min") if passed >= SECONDS[name]), "s")
    return f"{passed / SECONDS[unit]:.0f} {unit}"
