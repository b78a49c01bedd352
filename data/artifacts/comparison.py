"""In what artifacts and runs differ, and what came first."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from data.artifacts.identity import StepIdentity
from data.artifacts.manifest import Manifest
from data.artifacts.records import Record

_DIGITS = 12
"""Of a digest, where people read it."""

Differences = dict[str, tuple[Any, Any]]
"""What differs, by name: before and after, None where there is none."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between what determines two artifacts.

    Attributes:
        what: `artifact`: the one of this name is not in the store, what it was made of is unknown.
        before: None where there is none; so is after.
    """

    what: Literal["kind", "version", "option", "content", "input", "artifact"]
    name: str
    before: Any = None
    after: Any = None

    def __str__(self) -> str:
        match self.what:
            case "version":
                return f"version of {self.name} {self.before} → {self.after}"
            case "option":
                return f"{self.name}: {self.before!r} → {self.after!r}"
            case "content":
                return f"content of {self.name}: {_short(self.before)} → {_short(self.after)}"
            case "artifact":
                return f"{self.name} is not in the store"
        return f"{self.label}: {self.before or 'none'} → {self.after or 'none'}"

    @property
    def label(self) -> str:
        """What sort of difference it is, and of what."""
        return f"{self.what} {self.name}".rstrip()


Causes = Mapping[tuple[str, str], tuple[Change, ...]]
"""Pairs of artifacts that differ by themselves, not by their inputs alone, and in what."""


class Lineage:
    """Why artifacts differ, through everything that they are made from.

    Args:
        known: what determined an artifact, by its `kind/key`; None where that is not known.
    """

    def __init__(self, known: Callable[[str], StepIdentity | None]):
        self._known = known
        self.causes = cache(self._causes)

    def _causes(self, old: str, new: str) -> Causes:
        """The first causes, each before what follows from it."""
        if old == new:
            return {}
        before, after = self._known(old), self._known(new)
        if before is None or after is None:
            gone = old if before is None else new
            return {(old, new): (Change("artifact", gone),)}
        found: dict[tuple[str, str], tuple[Change, ...]] = {}
        if before.kind == after.kind:
            for name in before.inputs.keys() & after.inputs.keys():
                found |= self.causes(before.inputs[name], after.inputs[name])
        own = tuple(own_changes(before, after))
        return {**found, (old, new): own} if own else found

    def nearest(self, new: str, candidates: Iterable[Manifest]) -> Manifest | None:
        """The artifact with the fewest differences, then in what led to it; the newest of several."""
        identity = self._known(new)

        def distance(item: Manifest) -> tuple[int, int]:
            own = _num_differences(item.identity, identity) if identity else 0
            return own, sum(map(len, self.causes(item.reference, new).values()))

        newest = sorted(candidates, key=lambda item: item.created_at, reverse=True)
        return min(newest, key=distance, default=None)


def own_changes(old: StepIdentity, new: StepIdentity) -> Iterator[Change]:
    """In what a step differs from another by itself; an input that both have is not looked at."""
    if old.kind != new.kind:
        yield Change("kind", "", old.kind, new.kind)
        return
    for name, (before, after) in differences(old.versions, new.versions).items():
        yield Change("version", name, before, after)
    for name, (before, after) in differences(old.options, new.options).items():
        yield Change("option", name, before, after)
    for name, (before, after) in differences(old.foreign, new.foreign).items():
        yield Change("content", name, before, after)
    for name, (before, after) in differences(old.inputs, new.inputs).items():
        if before is None or after is None:
            yield Change("input", name, before, after)


def _num_differences(old: StepIdentity, new: StepIdentity) -> int:
    parts = ("versions", "options", "foreign", "inputs")
    return sum(len(differences(getattr(old, part), getattr(new, part))) for part in parts)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Differences:
    """What differs between two documents, by dotted name.

    >>> differences({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4, "d": 3}})
    {'a': (1, None), 'b.c': (2, 4)}
    """
    found: Differences = {}
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found[f"{prefix}{name}"] = (before, after)
    return found


def artifact_differences(lineage: Lineage, old: Manifest, new: Manifest) -> dict[str, Differences]:
    """In what two artifacts differ, by topic; a topic without differences is left out.

    Under `causes` stands in what those differ by themselves that they are made from.
    """
    own = (old.reference, new.reference)
    causes = {pair: found for pair, found in lineage.causes(*own).items() if pair != own}
    topics = {
        "kind": differences({"kind": old.kind}, {"kind": new.kind}),
        "versions": differences(old.versions, new.versions),
        "options": differences(old.options, new.options),
        "content": differences(old.foreign, new.foreign),
        "inputs": differences(old.inputs, new.inputs),
        "causes": _told(causes),
        "environment": differences(old.environment, new.environment),
        "files": file_differences(old, new),
        "numbers": differences(old.summary, new.summary),
    }
    return {topic: found for topic, found in topics.items() if found}


def file_differences(old: Manifest, new: Manifest) -> Differences:
    """The digests of two artifacts' files that are not the same in both, by path."""
    before, after = (
        {name: record.sha256 for name, record in item.files.items()} for item in (old, new)
    )
    return differences(before, after)


def run_differences(
    read: Callable[[str], Manifest | None], lineage: Lineage, old: Record, new: Record
) -> dict[str, Differences]:
    """In what two runs differ, by topic: their options, and their steps of equal names.

    Args:
        read: gives the manifest of an artifact, by its `kind/key`.
    """
    steps = differences(_steps(old), _steps(new))
    causes: dict[tuple[str, str], tuple[Change, ...]] = {}
    environment: Differences = {}
    files: Differences = {}
    for name, (before, after) in steps.items():
        if before is None or after is None:
            continue
        causes |= lineage.causes(before, after)
        made = [read(before), read(after)]
        if made[0] and made[1]:
            environment |= differences(made[0].environment, made[1].environment)
            changed = file_differences(made[0], made[1])
            files |= {f"{name}: {file}": pair for file, pair in changed.items()}
    topics = {
        "options": differences(old.options, new.options),
        "steps": steps,
        "causes": _told(causes, {step.reference: step.names[0] for step in new.steps}),
        "environment": environment,
        "files": files,
    }
    return {topic: found for topic, found in topics.items() if found}


def _told(causes: Causes, names: Mapping[str, str] = MappingProxyType({})) -> Differences:
    """The causes by name, after what the step is called, or its `kind/key`."""
    return {
        f"{names.get(new, new)}: {change.label}": (change.before, change.after)
        for (_, new), changes in causes.items()
        for change in changes
    }


def _steps(record: Record) -> dict[str, str]:
    return {name: step.reference for step in record.steps for name in step.names}


def _short(digest: str | None) -> str:
    return digest[:_DIGITS] if digest else "none"
