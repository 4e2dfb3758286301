"""An object store's bucket as a Storage, through `obstore` (Rust's object_store).

obstore takes credentials, regions and endpoints from the environment or the machine's own role, as their vendors name
them. None is ever part of a URL: URLs are written into configs and logs.
"""

import contextlib
import datetime
import errno
import functools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from jaxllm.storage.base import Content, Place, Storage, check_name
from jaxllm.storage.local import LocalStorage


class ObjectStorage:
    """The names under a prefix of an object store's bucket.

    What the store refuses, after a minute of trying again, is an OSError of one sentence.

    Args:
        store: one of `obstore.store`.
        place: URL of the prefix, for messages.
        prefix: what all keys begin with, without a slash at its end; empty for the whole bucket.
    """

    def __init__(self, store: Any, place: str, prefix: str = "") -> None:
        self._store, self._place, self._prefix = store, place, prefix

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        """See `Storage.read`."""
        import obstore

        if size == 0:
            return b""
        wanted: Any = {"offset": start} if size is None else (start, start + size)
        key = self._key(name)
        with self._told(name):
            if not start and size is None:
                return bytes(obstore.get(self._store, key).bytes())
            try:
                return bytes(obstore.get(self._store, key, options={"range": wanted}).bytes())
            except obstore.exceptions.GenericError:
                if obstore.head(self._store, key)["size"] > start:
                    raise
                return b""  # stores refuse a range that begins at the end or behind it

    def write(self, name: str, content: Content | Iterable[Content]) -> None:
        """See `Storage.write`."""
        import obstore

        file = content if isinstance(content, Content) else iter(content)
        with self._told(name):
            obstore.put(self._store, self._key(name), file, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)

    def create(self, name: str, content: Content) -> bool:
        """See `Storage.create`."""
        import obstore

        with self._told(name):
            try:
                obstore.put(self._store, self._key(name), content, mode="create")
            except obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """See `Storage.list`."""
        import obstore

        directory = prefix.rpartition("/")[0]
        # A store lists whole parts of names only: what is under the directory, to choose from.
        top = self._key(directory) if directory else self._prefix
        with self._told(prefix):
            keys = [found["path"] for batch in obstore.list(self._store, top or None) for found in batch]
        names = (key.removeprefix(f"{self._prefix}/") for key in keys)
        return sorted(name for name in names if name.startswith(prefix))

    def remove(self, name: str) -> None:
        """See `Storage.remove`."""
        import obstore

        with self._told(name), contextlib.suppress(FileNotFoundError):  # some stores tell
            obstore.delete(self._store, self._key(name))

    def below(self, directory: str) -> "ObjectStorage":
        """See `Storage.below`."""
        return ObjectStorage(self._store, f"{self._place}/{directory}", self._key(directory))

    def __str__(self) -> str:
        return self._place

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{check_name(name)}" if self._prefix else check_name(name)

    @contextlib.contextmanager
    def _told(self, name: str) -> Iterator[None]:
        """Make the store's errors OSErrors that name what they are of."""
        import obstore

        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "nothing is stored there", f"{self._place}/{name}") from None
        except obstore.exceptions.BaseError as error:
            raise OSError(errno.EIO, reason(error), f"{self._place}/{name}") from None


_PART, _PARTS_AT_ONCE = 32 << 20, 8
"""Bytes of a part of a large content, and how many are sent at once. S3 takes 10,000 parts: 320 GB."""

_STORES = {
    "gs": (
        "Google Cloud Storage",
        "credentials: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the machine's own",
    ),
    "s3": (
        "S3",
        "credentials: AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or the machine's own; place: AWS_REGION or "
        "AWS_ENDPOINT_URL",
    ),
    "az": ("Azure", "credentials: AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY, or the machine's own"),
}
"""By a URL's scheme: the store's name, and what it looks for in the environment."""


def is_url(place: Place) -> bool:
    """Whether a place is an object store's, and no local directory."""
    return "://" in os.fspath(place)


def open_storage(place: Place, field: str = "") -> Storage:
    """The storage of a place: a local directory, which need not exist, or a prefix of a bucket, which must.

    Args:
        place: a path, or gs://BUCKET/PREFIX, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX.
        field: of the config, that names the place; for errors.

    Raises:
        ValueError: one sentence, when no such store is known, its package is missing, or it cannot be listed.
    """
    text = os.fspath(place)
    if re.match(r"(gs|s3|az):/(?!/)", text):
        raise ValueError(f"{field or 'a place'} = {text!r}: write an object store's URL with two slashes, and as text")
    if not is_url(text):
        return LocalStorage(text)
    url = urlsplit(text)
    if "@" in url.netloc or url.query or url.fragment:  # what follows may be secret
        raise ValueError(
            f"{field or 'a place'} = '{url.scheme}://...': write SCHEME://BUCKET/PREFIX without user, password, ? "
            "and #; credentials come from the environment"
        )
    what = f"{field} = {text!r}" if field else text
    if url.scheme not in _STORES or not url.netloc:
        raise ValueError(f"{what}: use a local path, or gs://BUCKET/PREFIX, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX")
    prefix = url.path.strip("/")
    if prefix:
        check_name(prefix)
    try:
        store = connect(url.scheme, url.netloc)
    except ImportError:
        raise ValueError(
            f"{what}: obstore is not installed; uv sync --extra object-store (or pip install 'jaxllm[object-store]')"
        ) from None
    except OSError as error:
        name, hint = _STORES[url.scheme]
        raise ValueError(f"{what}: {name} gives no list of it ({error.strerror}); check its name ({hint})") from None
    return ObjectStorage(store, text.rstrip("/"), prefix)


@functools.cache
def connect(scheme: str, bucket: str) -> Any:
    """A store of `obstore.store`, seen to answer; one a bucket and process.

    Raises:
        ImportError: obstore is not installed.
        OSError: the store does not list the bucket.
    """
    import obstore

    options: Any = {"timeout": datetime.timedelta(minutes=2)}  # of one request, such as a part of a large content
    if scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["allow_http"] = True

    def open_with(retries: int, seconds: int) -> Any:
        retry: Any = {"max_retries": retries, "retry_timeout": datetime.timedelta(seconds=seconds)}
        return obstore.store.from_url(f"{scheme}://{bucket}", client_options=options, retry_config=retry)

    try:
        # A mistake shows soon, even where what would hold credentials does not answer.
        next(iter(obstore.list(open_with(1, 10), chunk_size=1)), None)
        return open_with(8, 60)
    except (obstore.exceptions.BaseError, FileNotFoundError) as error:
        raise OSError(errno.EIO, reason(error)) from None


def reason(error: Exception) -> str:
    """What a store says of its refusal, in one line, without what a URL may carry behind its question mark."""
    text = str(error)
    if any(host in text for host in _METADATA):
        return "no credentials were found, neither in the environment nor by asking the machine for its own"
    line = re.sub(r"\?\S*", "", text.partition("\n")[0].partition("<")[0])
    for noise in (
        r"Generic \S+ error: ",
        r"Error performing \w+ request: ",
        r"in [\d.]+.?s",
        r"Server returned \S+ status code:",
        r", after \d+ retries, max_retries: \d+, retry_timeout: \w+",
    ):
        line = re.sub(noise, "", line)
    code = re.search(r"<Code>(\w+)</Code>", text)
    line = " ".join(f"{line.strip(' :')}{f' ({code[1]})' if code else ''}".split())
    return line if len(line) <= 300 else f"{line[:150]} ... {line[-140:]}"


_METADATA = ("169.254.169.254", "metadata.google.internal")
"""Where a machine of a cloud is asked for its credentials, and none other answers."""
