"""Options of a kind of step, and which of them are part of a step's identity."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data.artifacts.digests import DigestMemory
from data.vocabulary.tables import Dataset


class RuntimeOnly:
    """Marks an option (`Annotated[int, RuntimeOnly]`) that cannot change what a step makes."""


class AddedLater:
    """Marks an option that came when there were artifacts made without it.

    Its default is what was done before, and while it has that value it stays out of the key.
    """


class Options(BaseModel):
    """Options of a kind of step, or a part of them.

    What they name outside of the artifact store is known by content: `foreign`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def num_gpus(self) -> int:
        """How many GPUs a step that loads models uses at once, where there are some."""
        return 1

    def foreign(self, digests: DigestMemory) -> dict[str, str]:
        """Digest of the content of what an option names, by the option's name.

        It stands in the key in place of the option's value, so that a path may be spelt as one likes.

        Raises:
            PipelineError: what is named is not there, or cannot be what it is named for.
        """
        return {}

    def keyed(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The options as plain JSON, less those that are no part of the key.

        Args:
            without: further options to leave out, those inside of others by dotted name.
        """
        keyed: dict[str, Any] = {}
        dumped = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            default = field.get_default(call_default_factory=True)
            later = AddedLater in field.metadata and value == default
            if name in without or RuntimeOnly in field.metadata or later:
                continue
            keyed[name] = dumped[name]
            if isinstance(value, Options):
                prefix = f"{name}."
                inner = [item.removeprefix(prefix) for item in without if item.startswith(prefix)]
                keyed[name] = value.keyed(inner)
        return keyed

    def downloads(self) -> tuple[str, ...]:
        """What will be fetched from elsewhere when the step runs."""
        return ()

    def check(self, dataset: Dataset) -> None:
        """Refuse what cannot work with an ingested data set.

        Raises:
            PipelineError: an option cannot be met; the message names it.
        """

    def note_places(self, artifact: Path) -> None:
        """Note beside an artifact where on this machine the files lie that it refers to."""
