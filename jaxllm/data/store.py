"""The tokenised store of a run's documents, on a local disk.

    manifest.json                   what everything is, written last
    tokenizer/                      the tokenizer's own files
    0-NAME/train.tokens.bin         a source's token stream: uint16, or uint32 for more than 65,536 ids
    0-NAME/train.offsets.bin        where each document begins in it, and its end: uint64
    0-NAME/train.documents.jsonl    the documents' identifiers; and the same three files for held_out

Where the config names no directory, the store's name holds a digest of the settings and of the source files' names,
sizes and times: another setting or a changed file is another store. A directory that the config does name is taken for
what it is as long as its settings are the config's; the source files need not exist any more.
"""

import contextlib
import functools
import itertools
import os
import pathlib
from collections.abc import Collection, Iterator

import msgspec
import numpy as np

from jaxllm.config import DataConfig
from jaxllm.data.build import LOCK, Progress, clear, write_store
from jaxllm.data.files import SourceFile, find
from jaxllm.data.manifest import (
    REBUILD,
    TOKENIZER,
    Manifest,
    Settings,
    check_settings,
    default_directory,
    fingerprint,
    read_manifest,
    verify,
)
from jaxllm.data.packing import Stream
from jaxllm.data.split import SplitName
from jaxllm.data.tokenizer import Tokenizer, load_saved, source_digest
from jaxllm.storage import LocalStorage


class Store:
    """A finished store, open for reading.

    Attributes:
        directory: where it lies.
        manifest: what it holds.
    """

    def __init__(self, storage: LocalStorage, manifest: Manifest):
        """Check the store's files and map them.

        Raises:
            ValueError: a file is missing, truncated or changed.
        """
        verify(storage, manifest)
        self.directory: pathlib.Path = storage.root
        self.manifest = manifest
        self._storage = storage
        self._streams = {
            split: tuple(self._map(index, split) for index in range(len(manifest.sources)))
            for split in ("train", "held_out")
        }

    def _map(self, index: int, split: SplitName) -> Stream:
        entry = self.manifest.sources[index].split(split)
        tokens = np.memmap(self._storage.path(entry.tokens.name), self.manifest.dtype, mode="r")
        offsets = np.memmap(self._storage.path(entry.offsets.name), "<u8", mode="r")
        # As plain arrays over the same maps: each slice of a memmap costs microseconds.
        return Stream(tokens.view(np.ndarray), offsets.view(np.ndarray), self.manifest.tokenizer.eos_id)

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer and every token: equal for equal training data, whatever its paths and times."""
        return self.manifest.digest

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the store carries."""
        return load_saved(self.directory / TOKENIZER)

    def streams(self, split: SplitName) -> tuple[Stream, ...]:
        """The token stream of each source, in the manifest's order."""
        return self._streams[split]

    def identifiers(self, split: SplitName, source: int, documents: Collection[int]) -> dict[int, str]:
        """Where documents come from, by their number in the source's stream, from 0; one reading finds them all."""
        entry = self.manifest.sources[source].split(split)
        with open(self._storage.path(entry.documents.name), "rb") as file:
            lines = itertools.islice(file, max(documents, default=-1) + 1)
            return {
                index: msgspec.json.decode(line, type=str) for index, line in enumerate(lines) if index in documents
            }

    def describe(self) -> str:
        """What the store holds, as a table for people."""
        manifest = self.manifest
        header = f"{'source':<24}{'split':<10}{'documents':>12}{'tokens':>16}{'bytes':>18}{'bytes/token':>13}"
        rows = [
            f"{source.name[:23]:<24}{split:<10}{entry.num_documents:>12,}{entry.num_tokens:>16,}{entry.num_bytes:>18,}"
            f"{entry.num_bytes / entry.num_tokens:>13.3f}"
            for source in manifest.sources
            for split, entry in (("train", source.train), ("held_out", source.held_out))
        ]
        entropy = manifest.unigram_entropy
        return "\n".join(
            [
                f"{self.directory}: {manifest.tokenizer.vocab_size:,} token ids, {np.dtype(manifest.dtype).name}",
                header,
                *rows,
                f"held-out unigram entropy: {entropy:.4f} nats/token, {manifest.bits_per_byte(entropy):.4f} bits/byte",
            ]
        )


def build(
    config: DataConfig, progress: Progress | None = None, force: bool = False, num_workers: int | None = None
) -> Store:
    """Build the store that a config asks for, or go on with a build that was stopped; a finished one is opened.

    Of several processes that build the same store one works and the others wait.

    Args:
        config: sources, tokenizer, split and place.
        progress: called as the build goes on.
        force: build anew what is there.
        num_workers: processes that tokenise; None means one a core, or this one for small sources.

    Raises:
        ValueError: one sentence, where a source or the tokenizer is not as it must be, or where the directory holds
            something else.
    """
    files, identity = _identify(config)
    storage = LocalStorage(config.store or default_directory(config, identity))
    with _lock(storage.root / LOCK):
        if force:
            clear(storage)
        manifest = read_manifest(storage)
        if manifest is not None and config.store:
            check_settings(config.store, manifest.settings, Settings.of(config))
            if manifest.fingerprint != identity:
                raise ValueError(
                    f"data.store = {config.store!r} was built from source or tokenizer files that have changed since: "
                    f"name another directory, or {REBUILD}"
                )
        if manifest is None:
            write_store(storage, config, identity, files, progress, num_workers)
            manifest = read_manifest(storage)
            assert manifest is not None
        return Store(storage, manifest)


def open_store(config: DataConfig, progress: Progress | None = None) -> Store:
    """Open the store that a config asks for; build it first if it is missing and the config names no directory.

    Raises:
        ValueError: one sentence, as `build` does; or the named directory holds no store, or one of other settings.
    """
    if not config.store:
        return build(config, progress)
    storage = LocalStorage(config.store)
    manifest = read_manifest(storage)
    if manifest is None:
        raise ValueError(f"data.store = {config.store!r} holds no finished store: run `jaxllm data build CONFIG` first")
    check_settings(config.store, manifest.settings, Settings.of(config))
    return Store(storage, manifest)


def find_tokenizer(config: DataConfig) -> Tokenizer | None:
    """The tokenizer of the store that a config asks for; None where there is no finished one, or its sources are gone.

    Raises:
        ValueError: the store or its tokenizer is damaged.
    """
    place = config.store
    if not place:
        try:
            place = default_directory(config, _identify(config)[1])
        except ValueError:
            return None  # without the sources nobody knows its name
    if read_manifest(LocalStorage(place)) is None:
        return None
    return load_saved(pathlib.Path(place) / TOKENIZER)


def _identify(config: DataConfig) -> tuple[list[list[SourceFile]], str]:
    files = [find(source) for source in config.sources]
    return files, fingerprint(config, files, source_digest(config.tokenizer))


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Hold a lock that other processes wait for; the system releases it when this one ends, however it ends.

    Some cluster file systems have no locks. Builders at the same time then do the same work and write the same bytes.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
    except OSError as error:
        raise ValueError(f"data.store: {path.parent} cannot be written ({error.strerror}): name another") from None
    with open(descriptor, "wb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
