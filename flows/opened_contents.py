"""The artifact store or its mirror, as commands open them."""

from typing import Annotated, TypeAlias

import typer

from data.artifacts.remote import required_remote
from data.artifacts.remote_contents import RemoteContents
from data.artifacts.store import ArtifactStore, default_root
from data.artifacts.store_contents import StoreContents

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
