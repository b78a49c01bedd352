"""A detector's classes by the ids of a data set's."""

from collections.abc import Collection, Mapping, Sequence

from data.errors import InvalidConfig, InvalidModel

UNKNOWN_CLASS = -1
"""Category id of a detected class that the data set does not have."""

_NUM_NAMED = 5
"""Class names that a message lists."""


def categories_by_name(
    names: Sequence[str], things: Mapping[int, str], class_names: Mapping[str, str] | None = None
) -> list[tuple[int, str]]:
    """Find the category ids of a detector's classes.

    Args:
        names: the detector's, in label order.
        things: category id to name of the data set.
        class_names: the detector's name to the data set's, where they differ.

    Returns:
        Category id, or `UNKNOWN_CLASS`, and name of each class; the data set's name where
        `class_names` gives one.

    Raises:
        InvalidConfig: `class_names` has a name that the detector or the data set does not know.

    >>> categories_by_name(["person", "aeroplane"], {7: "airplane"}, {"aeroplane": "airplane"})
    [(-1, 'person'), (7, 'airplane')]
    """
    renamed = class_names or {}
    _require_known("the detector", renamed.keys(), names)
    _require_known("the data set", renamed.values(), list(things.values()))
    ids = {name: category_id for category_id, name in things.items()}
    known_as = [renamed.get(name, name) for name in names]
    return [(ids.get(name, UNKNOWN_CLASS), name) for name in known_as]


def require_common_class(
    detector: str, categories: Sequence[tuple[int, str]], things: Mapping[int, str]
) -> None:
    """Refuse a detector that can find nothing of what a data set has.

    Args:
        detector: how the message calls it.
        categories: category id and name of each of its classes.
        things: category id to name of the data set.

    Raises:
        InvalidModel: all of its classes are unknown.
    """
    if all(category_id == UNKNOWN_CLASS for category_id, _ in categories):
        raise InvalidModel(
            f"detector {detector} knows {_listed([name for _, name in categories])}, the data set "
            f"{_listed(list(things.values()))}: they have no class in common. If they call them "
            "differently, say with the option class_names which is which"
        )


def require_all_classes(
    detector: str, categories: Sequence[tuple[int, str]], things: Mapping[int, str]
) -> None:
    """Refuse a judge that does not know all that a data set has: what it cannot find would count as missing.

    Args:
        detector: how the message calls it.
        categories: category id and name of each of its classes.
        things: category id to name of the data set.

    Raises:
        InvalidModel: a thing is none of its classes.
    """
    known = {category_id for category_id, _ in categories}
    missing = [name for category_id, name in things.items() if category_id not in known]
    if missing:
        raise InvalidModel(
            f"detector {detector} cannot judge: it does not know {_listed(missing)} of the data set, but "
            f"{_listed([name for _, name in categories])}. If it calls them differently, say with the "
            "option class_names which is which"
        )


def _require_known(whose: str, given: Collection[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise InvalidConfig(
                f"class_names: {whose} has no class {name!r}; it has {_listed(known)}"
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NUM_NAMED])) or "none"
    return f"{shown}, … ({len(names)} in all)" if len(names) > _NUM_NAMED else shown
