"""Graphs of steps: what a run consists of, resolved to the keys of its artifacts."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter

from data.artifacts.digests import DigestMemory
from data.artifacts.identity import StepIdentity
from data.artifacts.options import Options
from data.artifacts.records import RecordedStep
from data.errors import InvalidGraph
from tasks.catalogue import KINDS
from tasks.kind import Kind


@dataclass(frozen=True, slots=True)
class Node:
    """A step as a run declares it.

    Attributes:
        name: in the run; people read it.
        stage: group of steps that it belongs to.
        kind: name of its kind.
        options: of the kind's class.
        inputs: input's name to the name of the node that makes it.
    """

    name: str
    stage: str
    kind: str
    options: Options
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A step whose artifact is known by its key.

    Attributes:
        names: all that a run calls it; a detector may be the attribute detector and an arm.
        stages: all groups that it belongs to.
        inputs: input's name to the step that makes it.
    """

    names: tuple[str, ...]
    stages: tuple[str, ...]
    kind: Kind
    options: Options
    identity: StepIdentity
    inputs: Mapping[str, "Step"]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps by `kind/key`, each after its inputs."""

    steps: Mapping[str, Step]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps.values())

    def __len__(self) -> int:
        return len(self.steps)

    def find(self, name: str) -> Step:
        """The step of a name.

        Raises:
            InvalidGraph: there is none.
        """
        for step in self:
            if name in step.names:
                return step
        raise InvalidGraph(
            f"no step is called {name!r}: `detdiffusion plan` shows what they are called"
        )

    def of_stage(self, stage: str) -> list[Step]:
        """The steps of a stage, each after its inputs."""
        return [step for step in self if stage in step.stages]

    def recorded(self) -> tuple[RecordedStep, ...]:
        """The steps as a record keeps them."""
        return tuple(
            RecordedStep(
                names=step.names, stages=step.stages, kind=step.kind.name, key=step.identity.key
            )
            for step in self
        )


def resolve(nodes: Sequence[Node], digests: DigestMemory | None) -> Graph:
    """Check the nodes of a run and find the keys of their artifacts.

    Nodes that make the same artifact become one step.

    Args:
        digests: None to look at nothing outside of the store, which leaves it out of the keys.

    Raises:
        InvalidGraph: a name is there twice, a kind, input or node does not exist, an input is missing,
            options are of another kind, or there is a cycle.
        PipelineError: what an option names outside of the store is not there.
    """
    by_name = {node.name: node for node in nodes}
    for name, count in Counter(node.name for node in nodes).items():
        if count > 1:
            raise InvalidGraph(f"{count} steps are called {name!r}")
    for node in nodes:
        _check(node, by_name)
    steps: dict[str, Step] = {}
    for name in _in_order(by_name):
        node = by_name[name]
        inputs = {key: steps[source] for key, source in node.inputs.items()}
        steps[name] = _resolved(node, inputs, digests)
    return union([Graph({step.identity.reference: step}) for step in steps.values()])


def union(graphs: Iterable[Graph]) -> Graph:
    """Put graphs together; steps of one key become one with the names of both.

    Raises:
        InvalidGraph: two steps have the same key and are not the same.
    """
    merged: dict[str, Step] = {}
    for step in (step for graph in graphs for step in graph):
        reference = step.identity.reference
        known = merged.get(reference, step)
        if known.identity != step.identity:
            raise InvalidGraph(
                f"steps {known.name!r} and {step.name!r} have the same key {reference} and are not the "
                f"same: {known.identity} and {step.identity}"
            )
        merged[reference] = replace(
            known,
            names=tuple(dict.fromkeys([*known.names, *step.names])),
            stages=tuple(dict.fromkeys([*known.stages, *step.stages])),
        )
    steps: dict[str, Step] = {}
    for reference, step in merged.items():
        inputs = {name: steps[item.identity.reference] for name, item in step.inputs.items()}
        steps[reference] = replace(step, inputs=inputs)
    return Graph(steps)


def renamed(graph: Graph, prefix: str) -> Graph:
    """The graph with a prefix to the names of its steps."""
    return Graph(
        {
            reference: replace(step, names=tuple(f"{prefix}{name}" for name in step.names))
            for reference, step in graph.steps.items()
        }
    )


def extended(graph: Graph, node: Node, digests: DigestMemory) -> Graph:
    """A graph with one more step, whose inputs are steps of it.

    Raises:
        InvalidGraph: as `resolve`.
        PipelineError: likewise.
    """
    inputs = {key: graph.find(source) for key, source in node.inputs.items()}
    _check(node, set(node.inputs.values()))
    step = _resolved(node, inputs, digests)
    return union([graph, Graph({step.identity.reference: step})])


def _check(node: Node, nodes: Collection[str]) -> None:
    """Compare a node with what its kind declares.

    Args:
        nodes: names of those that there are.
    """
    kind = KINDS.get(node.kind)
    if kind is None:
        raise InvalidGraph(
            f"step {node.name!r} is of the unknown kind {node.kind!r}: the kinds are {', '.join(KINDS)}"
        )
    if type(node.options) is not kind.options:
        raise InvalidGraph(
            f"step {node.name!r} of kind {node.kind} needs options of type {kind.options.__name__}, "
            f"not {type(node.options).__name__}"
        )
    counts = Counter(name.partition("/")[0] for name in node.inputs)
    for name, multiplicity in kind.inputs.items():
        if multiplicity != "optional" and not counts[name]:
            raise InvalidGraph(f"step {node.name!r} of kind {node.kind} lacks the input {name!r}")
    for name, source in node.inputs.items():
        group, slash, _ = name.partition("/")
        if group not in kind.inputs or bool(slash) != (kind.inputs[group] == "many"):
            raise InvalidGraph(
                f"step {node.name!r}: kind {node.kind} has no input {name!r}, it has "
                + ", ".join(f"{k}/…" if v == "many" else k for k, v in kind.inputs.items())
            )
        if source not in nodes:
            raise InvalidGraph(
                f"step {node.name!r}: its input {name!r} is to be made by {source!r}, which is no step"
            )


def _in_order(nodes: Mapping[str, Node]) -> Iterator[str]:
    """Names of nodes, each after its inputs, otherwise as declared."""
    try:
        TopologicalSorter({name: node.inputs.values() for name, node in nodes.items()}).prepare()
    except CycleError as error:
        raise InvalidGraph("steps that need each other: " + " → ".join(error.args[1])) from error
    done: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        if name not in done:
            done.add(name)
            for source in nodes[name].inputs.values():
                yield from visit(source)
            yield name

    for name in nodes:
        yield from visit(name)


def _resolved(node: Node, inputs: Mapping[str, Step], digests: DigestMemory | None) -> Step:
    kind = KINDS[node.kind]
    foreign = {} if digests is None else node.options.foreign(digests)
    identity = StepIdentity(
        kind=kind.name,
        versions=dict(kind.versions),
        options=node.options.keyed(foreign),
        foreign=foreign,
        inputs={name: step.identity.reference for name, step in sorted(inputs.items())},
    )
    return Step((node.name,), (node.stage,), kind, node.options, identity, dict(inputs))
