"""Text to token ids and back: SentencePiece, Hugging Face tokenizers, bytes.

Every kind is used alike: `encode` adds no special token and reads none (a document that spells `</s>` does not end
there), and one id, `eos_id`, ends a document. A tokenizer is its files: they give its digest, a run carries them along,
and from them alone it is loaded again.
"""

import gzip
import hashlib
import itertools
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np
import sentencepiece

from jaxllm.config import BytesTokenizer, HuggingFaceTokenizer, SentencePieceTokenizer, TokenizerConfig
from jaxllm.data.hub import fetch
from jaxllm.storage import LocalStorage

MAX_FILE_BYTES = 200_000_000
"""Larger tokenizer files are refused, before and after decompression; the largest known ones have a tenth."""

_SPACE = "\u2581"
"""What SentencePiece writes for a space, and so cannot tell from itself."""

_USUAL_EOS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<｜end▁of▁sentence｜>", "<|im_end|>", "[EOS]")


class Tokenizer(Protocol):
    """Text to ids and back.

    Attributes:
        vocab_size: ids are below it.
        eos_id: of the token that ends a document.
    """

    vocab_size: int
    eos_id: int

    @property
    def files(self) -> Mapping[str, bytes]:
        """The contents that the tokenizer is loaded from, by file name."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the names and contents of the files."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32[num_tokens]."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text; on all cores where the library can."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids below vocab_size; a token that ends a document has none."""
        ...

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the files into a directory, from which `load_saved` reads them."""
        ...


class _Tokenizer:
    """What all kinds share: what follows from the files, and the encoding of one text."""

    files: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """See `Tokenizer.digest`."""
        result = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            result.update(f"{name}\0{len(content)}\0".encode() + content)
        return result.hexdigest()

    def save(self, directory: str | os.PathLike[str]) -> None:
        """See `Tokenizer.save`."""
        for name, content in self.files.items():
            LocalStorage(directory).write(name, content)

    def encode(self, text: str) -> np.ndarray:
        """See `Tokenizer.encode`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`."""
        raise NotImplementedError


class SentencePiece(_Tokenizer):
    """A SentencePiece model (Kudo and Richardson 2018).

    Args:
        model: content of a .model file.
        place: how errors call it.
        num_threads: of `encode_batch`; -1 means the machine's.

    Raises:
        ValueError: the content is no model, or one without a token that ends documents.
    """

    FILE = "tokenizer.model"

    def __init__(self, model: bytes, place: str, num_threads: int = -1):
        self.files = {self.FILE: model}
        self._num_threads = num_threads
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError):
            raise ValueError(f"{place} is not a whole SentencePiece model: copy or train it again") from None
        self.vocab_size = self._processor.get_piece_size()
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            raise ValueError(f"{place} has no piece that ends a document: train it with an eos_id")
        # A model that adds no space before a text and falls back to bytes can be lossless, but for one character:
        # the one it writes for a space. That one is given as its bytes.
        exact = not self._processor.encode("a", out_type=str)[0].startswith(_SPACE)
        pieces = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        self._space_ids = pieces if exact and all(map(self._processor.is_byte, pieces)) else None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`."""
        if self._space_ids is None:
            return [_ids(ids) for ids in self._encode(list(texts))]
        split = [text.split(_SPACE) for text in texts]
        encoded = iter(self._encode([part for parts in split for part in parts]))
        return [_ids(_join(itertools.islice(encoded, len(parts)), self._space_ids)) for parts in split]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, out_type=int, num_threads=self._num_threads)

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._processor.decode([int(token) for token in ids])


class HuggingFace(_Tokenizer):
    """A tokenizer.json of the `tokenizers` library.

    Args:
        content: of tokenizer.json.
        config: of tokenizer_config.json, or empty.
        place: how errors call it.
        eos_token: the token that ends a document; empty means the config's, or a usual one.

    Raises:
        ValueError: the content is no tokenizer, or no token that ends documents is found.
    """

    FILE = "tokenizer.json"
    CONFIG = "tokenizer_config.json"

    def __init__(self, content: bytes, config: bytes, place: str, eos_token: str = ""):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{place} is not a whole tokenizer.json ({error}): copy it again") from None
        # Text is data: no token is cut off, none is added, and none of it is read as a special token.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        settings = _decode_config(config, place)
        token = eos_token or _eos_token(settings, vocabulary)
        if token not in vocabulary:
            what = f"no token {token!r}" if token else "none of the usual tokens that end a document"
            raise ValueError(f"data.tokenizer.eos_token = {eos_token!r}: {place} has {what}; name one that it has")
        self.eos_id = vocabulary[token]
        self.files = {self.FILE: content, self.CONFIG: msgspec.json.encode(settings | {"eos_token": token})}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [_ids(encoding.ids) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)


class Bytes(_Tokenizer):
    """The bytes of UTF-8, and 256 for the end of a document."""

    FILE = "bytes.json"
    vocab_size = 257
    eos_id = 256

    def __init__(self) -> None:
        self.files = {self.FILE: b'{"vocab_size": 257, "eos_id": 256}\n'}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Tokenizer.encode_batch`."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """See `Tokenizer.decode`. Bytes that are not UTF-8 become U+FFFD."""
        return bytes(token for token in ids if token != self.eos_id).decode("utf-8", "replace")


FILES = (SentencePiece.FILE, HuggingFace.FILE, HuggingFace.CONFIG, Bytes.FILE)
"""Names of the files that tokenizers are saved as."""


def load_saved(directory: str | os.PathLike[str], num_threads: int = -1) -> Tokenizer:
    """The tokenizer whose files `Tokenizer.save` wrote; `num_threads` is SentencePiece's.

    Raises:
        ValueError: the directory holds no tokenizer, or a damaged one.
    """
    paths = [pathlib.Path(directory) / name for name in FILES]
    return from_files({path.name: _read(path) for path in paths if path.exists()}, str(directory), num_threads)


def from_files(files: Mapping[str, bytes], place: str, num_threads: int = -1) -> Tokenizer:
    """The tokenizer of the contents that `Tokenizer.files` gave; `place` is how errors call where they lie.

    Raises:
        ValueError: there is no tokenizer among them, or a damaged one.
    """
    if (name := SentencePiece.FILE) in files:
        return SentencePiece(files[name], f"{place}/{name}", num_threads)
    if (name := HuggingFace.FILE) in files:
        return HuggingFace(files[name], files.get(HuggingFace.CONFIG, b""), f"{place}/{name}")
    if Bytes.FILE in files:
        return Bytes()
    raise ValueError(f"{place} holds no tokenizer: neither {SentencePiece.FILE} nor {HuggingFace.FILE}")


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a config names.

    Raises:
        ValueError: its file is missing, too large, truncated or damaged, or it is yet to be trained.
    """
    if isinstance(config, BytesTokenizer):
        return Bytes()
    assert config.path, "a tokenizer without a path is trained, see jaxllm.data.training"
    path, *beside = _source_files(config)
    if isinstance(config, SentencePieceTokenizer):
        return SentencePiece(_read(path), str(path))
    return HuggingFace(_read(path), _read(beside[0]) if beside else b"", str(path), config.eos_token)


def source_digest(config: TokenizerConfig) -> str:
    """SHA-256 of the files that a config names, in hexadecimal; of nothing for one that names none.

    Raises:
        ValueError: a file is missing, too large, or damaged.
    """
    result = hashlib.sha256()
    for path in _source_files(config):
        content = _read(path)
        result.update(f"{len(content)}\0".encode() + content)
    return result.hexdigest()


def _source_files(config: TokenizerConfig) -> list[pathlib.Path]:
    """The tokenizer's file, and where there is one its tokenizer_config.json."""
    if isinstance(config, BytesTokenizer) or not config.path:
        return []
    names = (HuggingFace.FILE, HuggingFace.CONFIG) if isinstance(config, HuggingFaceTokenizer) else ()
    path = pathlib.Path(os.path.expanduser(fetch(config.path, "data.tokenizer.path", names)))
    if isinstance(config, SentencePieceTokenizer):
        return [path]
    path = _hugging_face_file(path)
    beside = path.with_name(path.name.removesuffix(".gz").replace("tokenizer.json", HuggingFace.CONFIG))
    return [path, beside] if beside != path and beside.exists() else [path]


def _hugging_face_file(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        return path
    plain = path / HuggingFace.FILE
    packed = path / f"{HuggingFace.FILE}.gz"
    return packed if packed.exists() and not plain.exists() else plain


def _read(path: pathlib.Path) -> bytes:
    """A tokenizer file's content, decompressed if it ends in .gz."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}): copy it again") from None
    except OSError as error:
        raise ValueError(f"data.tokenizer.path: {path} cannot be read ({error.strerror}): correct the path") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes, which no tokenizer is: correct the path")
    return content


def _decode_config(content: bytes, place: str) -> dict:
    if not content:
        return {}
    try:
        return msgspec.json.decode(content, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the {HuggingFace.CONFIG} beside {place} is damaged ({error}): copy it again") from None


def _eos_token(settings: dict, vocabulary: Mapping[str, int]) -> str:
    """The token that a tokenizer_config.json names, as text or as an object with its content; or a usual one."""
    named = settings.get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    if isinstance(named, str):
        return named
    return next((token for token in _USUAL_EOS if token in vocabulary), "")


def _join(parts: Iterable[list[int]], separator: list[int]) -> list[int]:
    first, *rest = parts
    return [*first, *(token for part in rest for token in (*separator, *part))] if rest else first


def _ids(ids: Sequence[int]) -> np.ndarray:
    return np.array(ids, np.int32)
