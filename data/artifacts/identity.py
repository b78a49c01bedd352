"""What determines a step's artifact, and therefore its key."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

KEY_DIGITS = 8
"""Of a key, at least, where people read it; the command line finds it by them."""


@dataclass(frozen=True)
class StepIdentity:
    """Everything that determines what a step makes.

    Attributes:
        kind: name of the kind.
        versions: of the kind's own code and of the code that it shares, bumped by hand.
        options: those that are part of the key, plain JSON.
        foreign: option to the digest of what it names outside of the store.
        inputs: input's name to `kind/key` of its artifact.
    """

    kind: str
    versions: dict[str, int]
    options: dict[str, Any]
    foreign: dict[str, str]
    inputs: dict[str, str]

    @cached_property
    def key(self) -> str:
        """SHA-256 of the canonical JSON of the identity, 32 hexadecimal digits."""
        document = {
            "kind": self.kind,
            "versions": self.versions,
            "options": self.options,
            "foreign": self.foreign,
            "inputs": self.inputs,
        }
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def reference(self) -> str:
        """`kind/key`: the artifact's folder under the store's root."""
        return f"{self.kind}/{self.key}"


def short_name(reference: str, key: str = "") -> str:
    """How people read `kind/key`: with the beginning of the key that is given, or its first digits.

    >>> short_name("ingest/0123456789abcdef")
    'ingest/01234567'
    """
    kind, _, whole = reference.partition("/")
    return f"{kind}/{key or whole[:KEY_DIGITS]}"
