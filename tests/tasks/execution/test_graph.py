"""Graphs: what nodes make, and what they may not."""

from typing import Annotated

import pytest

from data.artifacts.digests import DigestMemory
from data.artifacts.options import Options, RuntimeOnly
from data.errors import InvalidGraph
from tasks import catalogue
from tasks.execution import graph as graphs
from tasks.execution.graph import Node, renamed, resolve, union
from tasks.kind import Kind


class Number(Options):
    value: int = 0
    workers: Annotated[int, RuntimeOnly] = 1


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    """A kind that makes numbers, and one that adds some up."""
    made = Kind("number", "none", Number)
    added = Kind("sum", "none", Number, {"numbers": "many", "carry": "optional"})
    copied = Kind("copy", "none", Number, {"number": "one"})
    for kind in (made, added, copied):
        monkeypatch.setitem(catalogue.KINDS, kind.name, kind)


def number(name, value=0, **options):
    return Node(name, "numbers", "number", Number(value=value, **options))


def copy(name, of, stage="copies"):
    return Node(name, stage, "copy", Number(), {"number": of})


def build(*nodes):
    return resolve(nodes, DigestMemory())


def test_a_step_is_known_by_kind_options_and_inputs():
    first = build(number("a", 1), copy("b", "a"))
    assert [step.name for step in first] == ["a", "b"]
    assert first.find("b").inputs == {"number": first.find("a")}
    changed = build(number("a", 2), copy("b", "a"))
    assert changed.steps.keys().isdisjoint(first.steps)
    same = build(number("other", 1, workers=9), copy("names", "other"))
    assert same.steps.keys() == first.steps.keys()


def test_nodes_may_stand_in_any_order_and_inputs_too():
    total = Node("total", "s", "sum", Number(), {"numbers/y": "b", "numbers/x": "a"})
    forth = build(total, number("a", 1), number("b", 2))
    again = {"numbers/x": "a", "numbers/y": "b"}
    back = build(number("b", 2), number("a", 1), Node("total", "s", "sum", Number(), again))
    assert forth.steps.keys() == back.steps.keys()
    assert [step.name for step in forth][-1] == "total"


def test_nodes_that_make_the_same_are_one_step_with_both_names_and_stages():
    graph = build(number("a"), copy("b", "a"), copy("c", "a", stage="others"), copy("d", "c"))
    assert [step.names for step in graph] == [("a",), ("b", "c"), ("d",)]
    assert graph.find("c") is graph.find("b")
    assert graph.of_stage("others") == [graph.find("b")]


def test_a_union_shares_what_is_equal():
    first = renamed(build(number("a", 1), copy("b", "a")), "one: ")
    second = renamed(build(number("a", 1), copy("b", "a"), number("c", 2)), "two: ")
    both = union([first, second])
    assert [step.names for step in both] == [
        ("one: a", "two: a"), ("one: b", "two: b"), ("two: c",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((copy("a", "b"), copy("b", "a")), "need each other: a → b → a|need each other: b → a → b"),
        ((number("a"), number("a", 1)), "2 steps are called 'a'"),
        ((Node("a", "s", "nope", Number()),), "unknown kind 'nope': the kinds are ingest"),
        ((copy("a", "b"),), "is to be made by 'b', which is no step"),
        ((Node("a", "s", "copy", Number()),), "lacks the input 'number'"),
        (
            (number("a"), Node("b", "s", "copy", Number(), {"number": "a", "x": "a"})),
            "no input 'x'",
        ),
        (
            (number("a"), Node("b", "s", "sum", Number(), {"numbers": "a"})),
            "it has numbers/…, carry",
        ),
        ((number("a"), Node("b", "s", "copy", Number(), {"number/x": "a"})), "no input 'number/x'"),
        ((Node("a", "s", "number", Options()),), "options of type Number, not Options"),
    ],
)
def test_what_makes_no_graph_is_one_clear_error(nodes, message):
    with pytest.raises(InvalidGraph, match=message):
        build(*nodes)


def test_an_unknown_name_is_an_error():
    with pytest.raises(InvalidGraph, match="no step is called 'b'"):
        build(number("a")).find("b")


def test_two_steps_of_one_key_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(graphs.StepIdentity, "key", property(lambda self: "0" * 32))
    with pytest.raises(InvalidGraph, match="'a' and 'b' have the same key number/0000"):
        build(number("a", 1), number("b", 2))
