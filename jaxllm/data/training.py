"""Training a SentencePiece model that loses nothing, on a sample of the training documents.

`decode(encode(text)) == text` for every text: no normalisation, no space added or removed, runs of spaces and newlines
may be pieces, and what has no piece falls back to the bytes of UTF-8. Digits stand alone (Touvron et al. 2023, section
2.1); pieces may join letters and punctuation, which source code and Chinese need (measured on Python code: 3.53 bytes
a token against 3.31).

A vocabulary of 4,096 has no room for every character of Chinese, and SentencePiece refuses such a text. So characters
become pieces from the most frequent on, until they cover all but 0.05 % of the sample or fill half the vocabulary;
the rest falls back to bytes.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Sequence

import sentencepiece

from jaxllm.config import SentencePieceTokenizer
from jaxllm.data.corpus import file_documents
from jaxllm.data.files import SourceFile
from jaxllm.data.split import SplitSource
from jaxllm.data.tokenizer import SentencePiece

_FIXED_PIECES = 3 + 256
"""Unknown, begin, end, and the bytes."""

_RARE_SHARE = 0.0005
_MIN_FILE_BYTES = 1 << 16
_EXCERPT_CHARACTERS = 4000
"""The trainer numbers the characters of an excerpt with 16 bits."""

_BOUNDARY = "\t"
"""Takes the place of rare characters: the trainer lets no piece contain it."""


def train(config: SentencePieceTokenizer, texts: Sequence[str]) -> SentencePiece:
    """A model trained on texts; the same texts give the same model. It has fewer pieces if the texts give no more."""
    rare = dict.fromkeys(map(ord, _rare_characters(texts, (config.vocab_size - _FIXED_PIECES) // 2)), _BOUNDARY)
    excerpts = (excerpt.translate(rare) for text in texts for excerpt in _excerpts(text))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=excerpts,
        model_writer=model,
        model_type=config.algorithm,
        vocab_size=config.vocab_size,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        split_by_unicode_script=False,
        split_digits=True,
        max_sentence_length=1 << 20,  # in bytes; longer excerpts would be left out
        num_threads=1,  # with more, the order of pieces of equal score may change
        minloglevel=2,
    )
    return SentencePiece(model.getvalue(), "the trained model")


def sample(sources: Sequence[SplitSource], num_bytes: int) -> Iterator[str]:
    """Training text of about so many bytes of UTF-8, spread over the sources by size, and over the files of each.

    Files come in the order of their names' hashes, and each gives its first documents: up to an equal share of what is
    still missing, and 64 KiB at least.
    """
    total = sum(source.num_bytes for source in sources)
    for source in sources:
        left = num_bytes * source.num_bytes // total
        ordered = sorted(source.files, key=lambda file: hashlib.sha256(file.name.encode()).digest())
        for index, file in enumerate(ordered):
            if left <= 0:
                break
            share = min(left, max(_MIN_FILE_BYTES, left // (len(ordered) - index)))
            for text in _first_documents(source, file, share):
                left -= len(text.encode())
                yield text


def _first_documents(source: SplitSource, file: SourceFile, num_bytes: int) -> Iterator[str]:
    for document in file_documents(source.config, file):
        for name, part in source.split.parts(document):
            if name == "train":
                text = part.text.encode()[:num_bytes].decode("utf-8", "ignore")
                num_bytes -= len(text.encode())
                yield text
        if num_bytes <= 0:
            return


def _rare_characters(texts: Sequence[str], room: int) -> list[str]:
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    missing = counts.total()
    for index, character in enumerate(ordered):
        if index == room or missing <= _RARE_SHARE * counts.total():
            return ordered[index:]
        missing -= counts[character]
    return []


def _excerpts(text: str) -> Iterator[str]:
    """A text in pieces of a few thousand characters, cut at line ends where there are any."""
    start = 0
    while start < len(text):
        end = start + _EXCERPT_CHARACTERS
        end = (text.rfind("\n", start, end) + 1 or end) if end < len(text) else end
        yield text[start:end]
        start = end
