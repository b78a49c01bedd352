"""Options of a kind of step, and which of them are part of a step's identity."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data.artifacts.digests import DigestMemory
from data.option_errors import HintingModel

if TYPE_CHECKING:
    from data.vocabulary.tables import Dataset


class RuntimeOnly:
    """Marks an option (`Annotated[int, RuntimeOnly]`) that cannot change what a step makes."""


class AddedLater:
    """Marks an option that came when there were artifacts made without it.

    Its default is what was done before, and while it has that value it stays out of the key.
    """


class Options(HintingModel):
    """Options of a kind of step, or a part of them.

    What they name outside of the artifact store is known by content: `foreign`.
    """

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

    def check_without_data(self) -> None:
        """Refuse what cannot work on this machine, whatever the data, and tell what is likely a mistake.

        Raises:
            PipelineError: an option cannot be met; the message names it.
        """

    def check(self, dataset: "Dataset") -> None:
        """Refuse what cannot work with an ingested data set.

        Raises:
            PipelineError: an option cannot be met; the message names it.
        """

    def check_inputs(self, dataset: "Dataset", inputs: Mapping[str, "Options"]) -> None:
        """Refuse what cannot work with what the inputs, by name, will make of an ingested data set.

        Raises:
            PipelineError: an option cannot be met; the message names it.
        """

    def num_drawn(self, dataset: "Dataset") -> int:
        """How many images the step draws of an ingested data set's layouts: most draw none."""
        return 0

    def note_places(self, artifact: Path) -> None:
        """Note beside an artifact where on this machine the files lie that it refers to."""


class Execution(Options):
    """Who works on images that each stand for themselves: detection, drawing, features."""

    executor: Annotated[Literal["local", "ray"], RuntimeOnly] = Field(
        "local", description="Processes on this machine, or Ray's actors (the extra `ray`)."
    )
    num_workers: Annotated[int | None, RuntimeOnly] = Field(
        None,
        ge=1,
        description="Processes of a step, each with a GPU of its own where there are some. null: one for "
        "each GPU, else core, of the step's part of the machine; at an address of the cluster.",
    )
    address: Annotated[str | None, RuntimeOnly] = Field(
        None,
        description="Of a Ray cluster whose machines see this one's folders; null: each step starts its own.",
    )

    @model_validator(mode="after")
    def _ray_has_the_address(self) -> Self:
        if self.address and self.executor != "ray":
            raise ValueError("address is of a Ray cluster: say executor=ray too")
        return self


class ShardedOptions(Options):
    """Options of a kind of step that works on its images in shards."""

    execution: Annotated[Execution, RuntimeOnly] = Execution()

    @property
    def num_gpus(self) -> int:
        """One a worker; none where a cluster has the workers."""
        return 0 if self.execution.address else self.execution.num_workers or 1
