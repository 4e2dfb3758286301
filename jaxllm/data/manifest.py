"""What a store says about itself: manifest.json, written last, so that a store without one is unfinished.

A manifest names every file with its size and SHA-256, and the settings and source files that the store was built from.
It holds no time and no machine: the same sources and settings give the same bytes.
"""

import hashlib
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Literal, Self

import msgspec

from jaxllm.config import DataConfig, SourceConfig, TokenizerConfig
from jaxllm.data.files import SourceFile
from jaxllm.data.split import SPLITS, SplitName
from jaxllm.storage import LocalStorage

FORMAT_VERSION = 1

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"

MAX_HASHED_BYTES = 1 << 30
"""Larger files are checked by their size only when a store is opened."""

REBUILD = "build the store again with `jaxllm data build CONFIG --force`"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of a config decides a store's content. Paths are as the config writes them."""

    sources: tuple[SourceConfig, ...]
    tokenizer: TokenizerConfig
    held_out_fraction: float

    @classmethod
    def of(cls, config: DataConfig) -> Self:
        """The settings of a config."""
        return cls(config.sources, config.tokenizer, config.held_out_fraction)


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the store: its name below the store's directory, its bytes, and their SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class SplitEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One split of one source.

    Attributes:
        num_documents: documents, or ends or beginnings of documents, in it.
        num_tokens: tokens, with the one that ends each document.
        num_bytes: of the text's UTF-8.
        tokens: the token stream: little-endian numbers of the manifest's dtype.
        offsets: where each document's tokens begin, and where the last one's end: little-endian uint64.
        documents: identifiers, a JSON string a line.
    """

    num_documents: int
    num_tokens: int
    num_bytes: int
    tokens: FileEntry
    offsets: FileEntry
    documents: FileEntry


class SourceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One source.

    Attributes:
        name: as metrics call it.
        path: as the config has it.
        num_files: that were found there.
        file_bytes: of these files.
        text_sha256: of the documents as they were read and split.
        train: what is trained on.
        held_out: what is not.
    """

    name: str
    path: str
    num_files: int
    file_bytes: int
    text_sha256: str
    train: SplitEntry
    held_out: SplitEntry

    def split(self, name: SplitName) -> SplitEntry:
        """The split of the given name."""
        return self.train if name == "train" else self.held_out


class TokenizerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokenizer that the store carries."""

    vocab_size: int
    eos_id: int
    sha256: str
    files: tuple[FileEntry, ...]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished store.

    Attributes:
        format_version: of the store's layout.
        fingerprint: of the settings and of the source files' names, sizes and times.
        settings: what it was built with.
        tokenizer: the tokenizer inside.
        dtype: of tokens, as numpy writes it.
        sources: in the config's order.
        unigram_entropy: nats per token of the held-out tokens' own frequencies: what a model that knows these but no
            context would lose.
    """

    format_version: int
    fingerprint: str
    settings: Settings
    tokenizer: TokenizerEntry
    dtype: Literal["<u2", "<u4"]
    sources: tuple[SourceEntry, ...]
    unigram_entropy: float

    @property
    def digest(self) -> str:
        """SHA-256 of what is trained on: the tokenizer and every token, wherever they came from."""
        splits = [source.split(split) for source in self.sources for split in SPLITS]
        contents = [(entry.tokens.sha256, entry.offsets.sha256) for entry in splits]
        return hashlib.sha256(msgspec.json.encode((self.tokenizer.sha256, self.dtype, contents))).hexdigest()

    def total(self, split: SplitName, count: str) -> int:
        """The sum of `num_documents`, `num_tokens` or `num_bytes` of a split over the sources."""
        return sum(getattr(source.split(split), count) for source in self.sources)

    def bits_per_byte(self, nats_per_token: float, source: str = "") -> float:
        """A held-out loss, of one source or of all, in bits per byte: comparable between tokenizers."""
        entries = [entry.held_out for entry in self.sources if source in ("", entry.name)]
        tokens_per_byte = sum(entry.num_tokens for entry in entries) / sum(entry.num_bytes for entry in entries)
        return nats_per_token * tokens_per_byte / math.log(2)


def fingerprint(config: DataConfig, files: Sequence[Sequence[SourceFile]], tokenizer_sha256: str) -> str:
    """A digest of settings, of each source file's name, size and time, and of a tokenizer that is not trained here."""
    listings = [[(file.name, file.size, file.modified) for file in source] for source in files]
    identity = (FORMAT_VERSION, Settings.of(config), listings, tokenizer_sha256)
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()


def default_directory(config: DataConfig, fingerprint: str) -> str:
    """Where a store goes that the config does not place: named after its sources and its fingerprint."""
    names = "-".join(slug(source.name or source.path) for source in config.sources)
    return f"stores/{names[:40]}-{fingerprint[:12]}"


def slug(name: str) -> str:
    """A name in letters, digits and underscores of ASCII, for files."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_")[-40:] or "source"


def read_manifest(storage: LocalStorage) -> Manifest | None:
    """The store's manifest, or None where there is none.

    Raises:
        ValueError: it is damaged, or of another format version.
    """
    path = storage.root / MANIFEST
    try:
        content = storage.read(MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        version = msgspec.json.decode(content, type=dict)["format_version"]
        if version == FORMAT_VERSION:
            return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError):
        raise ValueError(f"{path} is damaged: {REBUILD}") from None
    raise ValueError(f"{path} has format_version = {version!r}, this jaxllm reads {FORMAT_VERSION}: {REBUILD}")


def verify(storage: LocalStorage, manifest: Manifest) -> None:
    """Check the size of every file of a store, and the SHA-256 of those of up to 1 GiB.

    Raises:
        ValueError: naming the first file that is missing, truncated or changed.
    """
    for entry in entries(manifest):
        path = storage.path(entry.name)
        if not path.is_file():
            raise ValueError(f"{path} is missing: {REBUILD}")
        if (size := path.stat().st_size) != entry.size:
            raise ValueError(f"{path} has {size:,} bytes, the manifest says {entry.size:,}: {REBUILD}")
        if entry.size <= MAX_HASHED_BYTES and _sha256(path) != entry.sha256:
            raise ValueError(f"{path} has changed since the store was built, its SHA-256 differs: {REBUILD}")


def entries(manifest: Manifest) -> list[FileEntry]:
    """Every file that a manifest names."""
    splits = [source.split(split) for source in manifest.sources for split in SPLITS]
    return [
        *manifest.tokenizer.files,
        *(file for split in splits for file in (split.tokens, split.offsets, split.documents)),
    ]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_settings(place: str, built: Settings, asked: Settings) -> None:
    """Check that a store that the config names by `data.store` holds what the config asks for.

    Raises:
        ValueError: naming the settings that differ.
    """
    before, now = _flatten(msgspec.to_builtins(built)), _flatten(msgspec.to_builtins(asked))
    differing = [
        f"{key} = {before.get(key, 'nothing')!r} instead of {now.get(key, 'nothing')!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(
            f"data.store = {place!r} was built with {', '.join(differing)}: name another directory, or {REBUILD}"
        )


def _flatten(tree: object, path: str = "") -> dict[str, object]:
    """Leaves by dotted path."""
    if not isinstance(tree, dict | list | tuple):
        return {path: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    prefix = f"{path}." if path else ""
    return {name: leaf for key, value in items for name, leaf in _flatten(value, f"{prefix}{key}").items()}
