"""What a kind of step is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from data.artifacts.options import Options

Multiplicity = Literal["one", "optional", "many"]
"""Of an input. Many inputs are told apart by what follows a slash: `sets/origin`, `sets/hard`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of step.

    Attributes:
        name: also the folder of its artifacts.
        module: whose `run(context)` does the work and returns a summary.
        options: class of its options.
        inputs: name to how many of them there are.
        versions: of its code and of code that it shares with other kinds, by name; bumped by hand when
            what it makes changes.
        share: of the machine's cores that a step asks for.
        preload: whether it loads models, whose libraries are so slow to import that it is done once for
            many steps.
        timed: those of its files that say how long something took: no two are the same.
    """

    name: str
    module: str
    options: type[Options] = Options
    inputs: Mapping[str, Multiplicity] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=lambda: {"step": 1})
    share: float = 0.5
    preload: bool = True
    timed: frozenset[str] = frozenset()
