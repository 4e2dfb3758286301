"""Tokenising chunks of documents, here or in other processes.

A worker is `python -m jaxllm.data.workers`, spoken to over its pipes: chunks in, tokens out. It imports neither jax nor
the caller's main module, forks nothing, and ends when its input does, also when its parent was killed.
"""

import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Self

import msgspec
import numpy as np

from jaxllm.data.split import SPLITS, SplitName
from jaxllm.data.tokenizer import Tokenizer, load_saved

_LENGTH_BYTES = 8


class Piece(msgspec.Struct, array_like=True):
    """Text of one document, all of it or a part.

    Attributes:
        split: where the document belongs.
        text: at most about a million characters.
        identifier: the document's, on its last piece; else None.
    """

    split: SplitName
    text: str
    identifier: str | None


class Tokens(msgspec.Struct, array_like=True):
    """A chunk's share of one split.

    Attributes:
        num_tokens: tokens, ends of documents among them.
        num_bytes: of the text's UTF-8.
        ends: for each document that ends here, the number of tokens up to its end.
        identifiers: of these documents.
    """

    num_tokens: int = 0
    num_bytes: int = 0
    ends: list[int] = []
    identifiers: list[str] = []


Header = dict[SplitName, Tokens]
"""What a tokenised chunk begins with, after its length: the counts. The tokens of each split follow, one by one."""


def encode_chunk(tokenizer: Tokenizer, dtype: str, chunk: bytes) -> bytes:
    """Tokenise a chunk, a msgpack list of pieces: the header's length, the header, the tokens of each split."""
    pieces = msgspec.msgpack.decode(chunk, type=list[Piece])
    encoded = tokenizer.encode_batch([piece.text for piece in pieces])
    header: Header = {split: Tokens() for split in SPLITS}
    tokens: dict[SplitName, list[np.ndarray]] = {split: [] for split in SPLITS}
    for piece, ids in zip(pieces, encoded, strict=True):
        entry = header[piece.split]
        entry.num_bytes += len(piece.text.encode())
        entry.num_tokens += len(ids)
        tokens[piece.split].append(ids)
        if piece.identifier is not None:
            entry.num_tokens += 1
            tokens[piece.split].append(np.array([tokenizer.eos_id], np.int32))
            entry.ends.append(entry.num_tokens)
            entry.identifiers.append(piece.identifier)
    head = msgspec.msgpack.encode(header)
    body = [np.concatenate(tokens[split]).astype(dtype).tobytes() for split in SPLITS if tokens[split]]
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "little"), head, *body])


def read_header(read: Callable[[int, int], bytes]) -> tuple[Header, int]:
    """The header of a tokenised chunk, and where its tokens begin; `read` takes a start and a size in bytes."""
    length = int.from_bytes(read(0, _LENGTH_BYTES), "little")
    header = msgspec.msgpack.decode(read(_LENGTH_BYTES, length), type=Header)
    return header, _LENGTH_BYTES + length


class Pool[Key]:
    """So many tokenising processes; use it as a context.

    Args:
        directory: of the saved tokenizer.
        dtype: of the tokens.
        num_workers: processes.
    """

    def __init__(self, directory: pathlib.Path, dtype: str, num_workers: int):
        self._command = [sys.executable, "-m", "jaxllm.data.workers", str(directory), dtype]
        self._num_workers = num_workers

    def __enter__(self) -> Self:
        paths = os.pathsep.join(path for path in sys.path if path)
        # One process a core is parallel enough: the tokenizers' own threads would only compete.
        environment = os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}
        self._processes = [
            subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for _ in range(self._num_workers)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(self._num_workers, thread_name_prefix="tokenise")
        return self

    def __exit__(self, *exception: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            # Leaving its context closes a process's pipes, at which it ends, and waits for it.
            with contextlib.suppress(BrokenPipeError), process:
                pass

    def map(self, chunks: Iterable[tuple[Key, bytes]]) -> Iterator[tuple[Key, bytes]]:
        """Each chunk tokenised, under its key and in order; chunks are taken as processes come free."""
        running: deque[tuple[Key, Future[bytes]]] = deque()
        for key, chunk in chunks:
            running.append((key, self._threads.submit(self._encode, chunk)))
            if len(running) > 2 * self._num_workers:
                key, result = running.popleft()
                yield key, result.result()
        for key, result in running:
            yield key, result.result()

    def _encode(self, chunk: bytes) -> bytes:
        process = self._idle.get()
        assert process.stdin and process.stdout
        result = None
        with contextlib.suppress(BrokenPipeError):
            _send(process.stdin, chunk)
            result = _receive(process.stdout)
        self._idle.put(process)
        if result is None:
            raise RuntimeError(f"a tokenising process ended with exit code {process.wait()}, see above for its reason")
        return result


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(_LENGTH_BYTES, "little"))
    stream.write(content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """The next content, or None at the end."""
    length = stream.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    size = int.from_bytes(length, "little")
    content = stream.read(size)
    return content if len(content) == size else None


def main(directory: str, dtype: str) -> None:
    """Tokenise chunks from standard input to standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent decides
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not get between the results
    tokenizer = load_saved(directory, num_threads=1)
    with contextlib.suppress(BrokenPipeError):
        while (chunk := _receive(sys.stdin.buffer)) is not None:
            _send(results, encode_chunk(tokenizer, dtype, chunk))


if __name__ == "__main__":
    main(*sys.argv[1:])
