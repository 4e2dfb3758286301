"""Writing a store: documents to chunks, chunks to tokens, tokens to the files that are mapped into memory.

Text is read once, in order, and cut into chunks of about 4 MB. A chunk is tokenised, here or in another process, and
its tokens are written under a name that holds the digest of its text: a build that was killed starts again, finds the
chunks it has, and goes on. At the end the chunks of each source and split are joined, the manifest is written, and the
chunks go. Which process did what leaves no trace in the bytes.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec
import numpy as np

from jaxllm.config import DataConfig, SentencePieceTokenizer, TokenizerConfig
from jaxllm.data.corpus import documents
from jaxllm.data.files import COMPRESSED, SourceFile
from jaxllm.data.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    FileEntry,
    Manifest,
    Settings,
    SourceEntry,
    SplitEntry,
    TokenizerEntry,
    slug,
)
from jaxllm.data.split import SPLITS, SplitName, SplitSource
from jaxllm.data.tokenizer import Tokenizer, load_saved, load_tokenizer
from jaxllm.data.training import sample, train
from jaxllm.data.workers import Header, Piece, Pool, Tokens, encode_chunk, read_header
from jaxllm.storage import LocalStorage

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes of text done, and bytes in all (0: unknown)."""

CHUNK_BYTES = 4_000_000
PIECE_CHARACTERS = 1_000_000
"""A longer document is tokenised in pieces, cut at line ends: some tokenizers need memory many times a text's."""

PARALLEL_BYTES = 32_000_000
"""Smaller sources are tokenised in this process: others take about a second to start."""

LOCK = "lock"
"""Held, as a file lock, by the process that builds."""

_BUILDING = "building.json"
_CHUNKS = "chunks/"
_OURS = re.compile(
    rf"({MANIFEST}|{_BUILDING}|{_CHUNKS}.*|{TOKENIZER}/.*"
    r"|\d+-\w+/(train|held_out)\.(tokens\.bin|offsets\.bin|documents\.jsonl))"
)


def write_store(
    storage: LocalStorage,
    config: DataConfig,
    fingerprint: str,
    files: Sequence[Sequence[SourceFile]],
    progress: Progress | None,
    num_workers: int | None,
) -> None:
    """Write a store, or go on with one that was begun for the same fingerprint.

    Args:
        storage: the store's directory; what of another build it holds is removed.
        config: what to build.
        fingerprint: of the config and the files.
        files: of each source.
        progress: told how far it is.
        num_workers: processes that tokenise; None means one a core, or this one for small sources.

    Raises:
        ValueError: as reading the documents and loading the tokenizer do, or a source too small to split.
    """
    progress = progress or (lambda what, done, total: None)
    if _begun(storage) != fingerprint:
        clear(storage)
        storage.write(_BUILDING, msgspec.json.encode({"fingerprint": fingerprint}))
    sources = [
        SplitSource.of(source, found, config.held_out_fraction)
        for source, found in zip(config.sources, files, strict=True)
    ]
    tokenizer = _tokenizer(storage, config.tokenizer, sources, progress)
    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    names = _write_chunks(storage, sources, tokenizer, dtype, progress, num_workers)
    held_out_counts = np.zeros(tokenizer.vocab_size, np.int64)
    entries = [
        _source_entry(storage, f"{index}-{slug(source.split.source)}", source, names[index], dtype, held_out_counts)
        for index, source in enumerate(sources)
    ]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint,
        settings=Settings.of(config),
        tokenizer=_tokenizer_entry(tokenizer),
        dtype=dtype,
        sources=tuple(entries),
        unigram_entropy=_entropy(held_out_counts),
    )
    storage.write(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    for name in [*storage.list(_CHUNKS), _BUILDING]:
        storage.remove(name)


def clear(storage: LocalStorage) -> None:
    """Remove the files of a store, finished or not.

    Raises:
        ValueError: the directory holds other files, and no store.
    """
    names = [name for name in storage.list() if name != LOCK]
    if names and MANIFEST not in names and _BUILDING not in names:
        raise ValueError(f"data.store: {storage.root} holds files that are no store's: name a new directory")
    storage.write(_BUILDING, b"{}")  # so that the rest is known as ours, should this be interrupted
    for name in sorted(filter(_OURS.fullmatch, names), key=lambda name: name != MANIFEST):
        if name != _BUILDING:
            storage.remove(name)


def _begun(storage: LocalStorage) -> str | None:
    with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(storage.read(_BUILDING), type=dict[str, str]).get("fingerprint")
    return None


def _tokenizer(
    storage: LocalStorage, config: TokenizerConfig, sources: Sequence[SplitSource], progress: Progress
) -> Tokenizer:
    """The tokenizer, saved in the store: what an earlier attempt saved there, the config's, or a trained one."""
    directory = storage.root / TOKENIZER
    if isinstance(config, SentencePieceTokenizer) and not config.path:
        if not storage.list(f"{TOKENIZER}/"):
            progress("training the tokenizer", 0, config.training_bytes)
            train(config, list(sample(sources, config.training_bytes))).save(directory)
        return load_saved(directory)
    tokenizer = load_tokenizer(config)
    tokenizer.save(directory)
    return tokenizer


def _tokenizer_entry(tokenizer: Tokenizer) -> TokenizerEntry:
    return TokenizerEntry(
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        sha256=tokenizer.digest,
        files=tuple(
            FileEntry(f"{TOKENIZER}/{name}", len(content), hashlib.sha256(content).hexdigest())
            for name, content in sorted(tokenizer.files.items())
        ),
    )


def _pieces(source: SplitSource) -> Iterator[Piece]:
    for document in documents(source.config):
        for name, (identifier, text) in source.split.parts(document):
            start = 0
            while len(text) - start > PIECE_CHARACTERS:
                end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
                yield Piece(name, text[start:end], None)
                start = end
            yield Piece(name, text[start:], identifier)


def _chunks(pieces: Iterable[Piece]) -> Iterator[tuple[list[Piece], int]]:
    """Pieces in lists of about CHUNK_BYTES of UTF-8, and how many bytes these are."""
    chunk, size = [], 0
    for piece in pieces:
        chunk.append(piece)
        size += len(piece.text.encode())
        if size >= CHUNK_BYTES:
            yield chunk, size
            chunk, size = [], 0
    if chunk:
        yield chunk, size


def _write_chunks(
    storage: LocalStorage,
    sources: Sequence[SplitSource],
    tokenizer: Tokenizer,
    dtype: str,
    progress: Progress,
    num_workers: int | None,
) -> list[list[str]]:
    """Tokenise what is not tokenised yet, and return the names of each source's chunks."""
    num_bytes = sum(source.num_bytes for source in sources)
    endings = {file.path.suffix for source in sources for file in source.files}
    text_bytes = 0 if endings & {*COMPRESSED, ".parquet"} else num_bytes
    present = set(storage.list(_CHUNKS))
    names: list[list[str]] = [[] for _ in sources]
    done = 0

    def missing() -> Iterator[tuple[tuple[str, int], bytes]]:
        nonlocal done
        for index, source in enumerate(sources):
            for pieces, size in _chunks(_pieces(source)):
                chunk = msgspec.msgpack.encode(pieces)
                name = f"{_CHUNKS}{index}-{len(names[index]):06d}-{hashlib.sha256(chunk).hexdigest()}"
                names[index].append(name)
                if name in present:
                    done += size
                else:
                    yield (name, size), chunk

    with contextlib.ExitStack() as stack:
        if num_workers is None:
            num_workers = _num_cores() if num_bytes >= PARALLEL_BYTES else 1
        if num_workers > 1:
            pool = stack.enter_context(Pool(storage.root / TOKENIZER, dtype, num_workers))
            results = pool.map(missing())
        else:
            results = ((key, encode_chunk(tokenizer, dtype, chunk)) for key, chunk in missing())
        for (name, size), result in results:
            storage.write(name, result)
            done += size
            progress("tokenising", done, text_bytes)
    return names


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _source_entry(
    storage: LocalStorage,
    prefix: str,
    source: SplitSource,
    names: Sequence[str],
    dtype: str,
    held_out_counts: np.ndarray,
) -> SourceEntry:
    """Write the files of a source from its chunks."""
    splits = {split: _join(storage, prefix, split, names, dtype, held_out_counts) for split in SPLITS}
    if splits["held_out"].num_tokens == 0:
        raise ValueError(f"data.sources: {source.config.path!r} is too small to hold anything out: add text to it")
    return SourceEntry(
        name=source.split.source,
        path=source.config.path,
        num_files=len(source.files),
        file_bytes=source.num_bytes,
        text_sha256=hashlib.sha256("".join(names).encode()).hexdigest(),
        **splits,
    )


def _join(
    storage: LocalStorage, prefix: str, split: SplitName, names: Sequence[str], dtype: str, held_out_counts: np.ndarray
) -> SplitEntry:
    """Write the files of one split of one source from its chunks, and count held-out tokens on the way."""
    itemsize = np.dtype(dtype).itemsize

    def headers() -> Iterator[tuple[str, Header, int]]:
        for name in names:
            yield name, *read_header(lambda start, size, name=name: storage.read(name, start, size))

    def tokens() -> Iterator[bytes]:
        for name, header, start in headers():
            earlier = sum(header[other].num_tokens for other in SPLITS[: SPLITS.index(split)])
            content = storage.read(name, start + earlier * itemsize, header[split].num_tokens * itemsize)
            if split == "held_out":
                held_out_counts[:] += np.bincount(np.frombuffer(content, dtype), minlength=len(held_out_counts))
            yield content

    def offsets() -> Iterator[bytes]:
        base = 0
        yield bytes(8)
        for _, header, _ in headers():
            yield (np.array(header[split].ends, "<u8") + np.uint64(base)).tobytes()
            base += header[split].num_tokens

    def identifiers() -> Iterator[bytes]:
        for _, header, _ in headers():
            yield b"".join(msgspec.json.encode(name) + b"\n" for name in header[split].identifiers)

    def total(count: Callable[[Tokens], int]) -> int:
        return sum(count(header[split]) for _, header, _ in headers())

    return SplitEntry(
        num_documents=total(lambda share: len(share.ends)),
        num_tokens=total(lambda share: share.num_tokens),
        num_bytes=total(lambda share: share.num_bytes),
        tokens=_write(storage, f"{prefix}/{split}.tokens.bin", tokens()),
        offsets=_write(storage, f"{prefix}/{split}.offsets.bin", offsets()),
        documents=_write(storage, f"{prefix}/{split}.documents.jsonl", identifiers()),
    )


def _write(storage: LocalStorage, name: str, content: Iterable[bytes]) -> FileEntry:
    """Write a file from its parts, and return its entry of the manifest."""
    size, sha256 = 0, hashlib.sha256()

    def measured() -> Iterator[bytes]:
        nonlocal size
        for part in content:
            size += len(part)
            sha256.update(part)
            yield part

    storage.write(name, measured())
    return FileEntry(name, size, sha256.hexdigest())


def _entropy(counts: np.ndarray) -> float:
    """Entropy of a distribution given by counts, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
