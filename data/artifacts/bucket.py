"""Objects on object storage, or in a folder: read, listed, written, created where there are none."""

import os
import re
import time
import uuid
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from data.errors import InvalidConfig, ServiceUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

VARIABLE = "DETDIFFUSION_REMOTE"
_CREDENTIALS = ("AWS_", "GOOGLE_")
PART = 8_000_000
"""Bytes in one request of a long object."""

_ANSWER = timedelta(seconds=20)
"""Within which a server answers a request, tries included."""

_TRANSFER = timedelta(minutes=2)
"""Within which it takes or gives a part of a long object."""

CONTENDERS = 32
"""Threads in a contest."""

PROBE = ".probe"

_SCHEMES = ("s3", "gs", "file")
_PAUSES = (0.0, 1.0, 4.0)
"""Seconds before each try to write what must not be there yet."""

_CAUSES = (r"<Code>(\w+)</Code>", r"status code: (\d+)", r"\bkind: (\w+),\s+source")
"""In an error of the library, whose full text has addresses, signatures and what the server says of them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a listing says of an object.

    Attributes:
        size: bytes.
        changed: seconds since the epoch, by the server's clock.
    """

    size: int
    changed: float


def forget_bucket() -> None:
    """Take address and credentials out of the environment of a process that is to know the store alone."""
    for name in [*os.environ]:
        if name == VARIABLE or name.startswith(_CREDENTIALS):
            del os.environ[name]


class Bucket:
    """The objects under one address; credentials are the environment's or the machine's.

    It is opened at its first use: what is opened does not outlive a fork. All methods raise
    `ServiceUnavailable` where it cannot be used.

    Args:
        url: `s3://bucket/prefix`, `gs://bucket/prefix` or `file:///folder`.

    Raises:
        InvalidConfig: the address is of another form.
    """

    def __init__(self, url: str):
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query:
            raise InvalidConfig(
                f"{VARIABLE} has more in it than a place: give credentials in variables of their own, such "
                "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if parts.scheme not in _SCHEMES or not (parts.netloc or parts.scheme == "file"):
            raise InvalidConfig(
                f"{VARIABLE}={url}: write s3://bucket/prefix, gs://bucket/prefix or file:///folder"
            )
        self.url = url

    @cached_property
    def _objects(self) -> "ObjectStore":
        return self._opened(_ANSWER)

    @cached_property
    def _long_objects(self) -> "ObjectStore":
        return self._opened(_TRANSFER)

    def _opened(self, timeout: timedelta) -> "ObjectStore":
        from obstore.store import from_url  # noqa: PLC0415  # runs without a mirror go without

        if self.url.startswith("file:"):
            return from_url(self.url)
        return from_url(
            self.url,
            client_options={
                "timeout": timeout,
                "allow_http": True,  # where AWS_ENDPOINT_URL asks for it
            },
            retry_config={"max_retries": 4, "retry_timeout": timeout / 2},
        )

    def read(self, name: str) -> bytes | None:
        """An object's content; None where there is none."""
        with self._errors():
            try:
                return bytes(self._objects.get(name).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                return None

    def parts(self, name: str, size: int) -> Iterator[bytes]:
        """An object's content, of so many bytes, in parts of at most `PART` bytes; ends where it is gone."""
        for start in range(0, size, PART):
            with self._errors():
                try:
                    length = min(PART, size - start)
                    part = self._long_objects.get_range(name, start=start, length=length)
                except FileNotFoundError:
                    return
            yield bytes(part)

    def listed(self, prefix: str | None = None) -> dict[str, Entry]:
        """All objects of a prefix, or all that there are, by the rest of their names."""
        with self._errors():
            found = (item for page in self._objects.list(prefix, chunk_size=1000) for item in page)
            above = f"{prefix}/" if prefix else ""
            return {
                item["path"].removeprefix(above): Entry(
                    item["size"], item["last_modified"].timestamp()
                )
                for item in found
            }

    def folders(self, prefix: str | None = None) -> list[str]:
        """What objects' names begin with, one level below a prefix."""
        with self._errors():
            return list(self._objects.list_with_delimiter(prefix)["common_prefixes"])

    def put(self, name: str, content: bytes | Path) -> None:
        """Write an object, over what is there."""
        with self._errors():
            self._long_objects.put(name, content, chunk_size=PART, max_concurrency=4)

    def creates(self, name: str, content: bytes = b"detdiffusion") -> bool:
        """Whether an object could be created: none was there."""
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415  # as above

        with self._errors():
            try:
                self._objects.put(name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def create(self, name: str, content: bytes) -> bytes:
        """Create an object; what is there in the end, which is another's where that came first.

        An error says little: the write may have been done and its answer lost. What is there decides.
        """
        failure = ServiceUnavailable(
            f"{self.url}/{name} can be neither written nor read: push again"
        )
        for pause in _PAUSES:
            time.sleep(pause)
            try:
                if self.creates(name, content):
                    return content
            except ServiceUnavailable as error:
                failure = error
            if (there := self.read(name)) is not None:
                return there
        raise failure

    def delete(self, names: Collection[str]) -> None:
        """Delete objects; one that another process deletes meanwhile is gone as well."""
        with self._errors():
            try:
                self._objects.delete(list(names))
            except FileNotFoundError:  # in a folder, where it ends the request
                for name in names:
                    with suppress(FileNotFoundError):
                        self._objects.delete(name)

    def probe(self) -> None:
        """Refuse a server that ignores the condition that nothing be there; one object stays for this."""
        if self.creates(PROBE) and self.creates(PROBE):
            raise ServiceUnavailable(
                f"{self.url}: the server ignores the condition that nothing be there (If-None-Match: *), so "
                "machines would overwrite each other's artifacts: update it, or use another one"
            )

    def contest(self) -> None:
        """Refuse a server that lets more than one of many threads create the same object at once."""
        name = f"{PROBE}-{uuid.uuid4().hex}"
        with ThreadPoolExecutor(CONTENDERS) as pool:
            winners = sum(pool.map(self.creates, [name] * CONTENDERS))
        with suppress(ServiceUnavailable):  # who may not delete leaves it
            self.delete([name])
        if winners != 1:
            raise ServiceUnavailable(
                f"{self.url}: of {CONTENDERS} that created one object at once {winners} were told that they "
                "did, so machines could overwrite each other's artifacts: use another server"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn the library's errors into one that users can read and that holds no secret."""
        from obstore.exceptions import BaseError  # noqa: PLC0415  # as above

        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise ServiceUnavailable(f"{self.url}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What a user can make of an error of the library."""
    text = str(error)
    causes = (match[1] for pattern in _CAUSES if (match := re.search(pattern, text)))
    cause = next(causes, type(error).__name__)
    if "NoSuchBucket" in text or "UnableToCanonicalize" in text:
        return f"there is no such bucket or folder: create it, or correct {VARIABLE}"
    if re.search(r"/latest/api/token|metadata\.google|Missing(AccessKeyId|SecretAccessKey)", text):
        return (
            "there are no credentials: set them in the environment, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or give the machine a role"
        )
    if re.search(r"status code: 40[13]|<Code>ExpiredToken</Code>", text):
        return (
            f"access is refused ({cause}): check the credentials in the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do there"
        )
    return f"it does not answer as it should ({cause}): check the network and AWS_ENDPOINT_URL"
