"""Where text comes from, how it becomes tokens, and in what order a run sees them."""

import math
from collections.abc import Collection
from typing import Literal

from jaxllm.config.base import Choice, Section, require
from jaxllm.config.errors import dotted, nearest

EMBEDDED = "embedded:python"
"""The path of the corpus that every machine has: the running Python's standard library sources."""


class SourceConfig(Section, frozen=True, kw_only=True):
    """A set of documents.

    Attributes:
        path: a file, a directory, a glob, or `embedded:python`; relative paths start at the working directory.
            `embedded:python/PATTERN` takes the modules whose path below the library's directory matches, where `*`
            stands for any text. Files may be compressed as .gz or .zst. `hf://datasets/OWNER/NAME/PATH` is fetched
            from the Hugging Face hub.
        name: how metrics and manifests call it; empty means the path.
        format: `auto` goes by the file's ending (.jsonl, .parquet, anything else text).
        text_field: the field or column of jsonl and parquet that holds the text.
        documents: what a document of a text file is: the whole file, each line, or each run of lines between
            blank ones.
    """

    path: str
    name: str = ""
    format: Literal["auto", "text", "jsonl", "parquet"] = "auto"
    text_field: str = "text"
    documents: Literal["file", "line", "paragraph"] = "file"

    def __post_init__(self) -> None:
        require(self.path != "", "path", self.path, f"name a file, a directory, a glob or {EMBEDDED!r}")
        fetched = self.path.startswith("hf://") or "://" not in self.path
        require(fetched, "path", self.path, "text is read from local files, or from hf://datasets/OWNER/NAME/PATH")

    @property
    def is_embedded(self) -> bool:
        """Whether it is the corpus that every machine has, or a part of it."""
        return self.path == EMBEDDED or self.path.startswith(f"{EMBEDDED}/")


class SentencePieceTokenizer(Choice, frozen=True, kw_only=True, tag="sentencepiece"):
    """SentencePiece (Kudo and Richardson 2018): loaded from a .model file, or trained on the corpus.

    Attributes:
        path: a .model file; empty means that `jaxllm data build` trains one.
        vocab_size: pieces of a trained model.
        algorithm: of a trained model.
        training_bytes: at most so many bytes of the training documents are read for training.
    """

    path: str = ""
    vocab_size: int = 4096
    algorithm: Literal["bpe", "unigram"] = "bpe"
    training_bytes: int = 4_000_000

    def __post_init__(self) -> None:
        require(self.vocab_size >= 300, "vocab_size", self.vocab_size, "256 bytes and some pieces need 300 or more")
        require(self.training_bytes >= 1, "training_bytes", self.training_bytes, "use 1 or more")


class HuggingFaceTokenizer(Choice, frozen=True, kw_only=True, tag="huggingface"):
    """A Hugging Face tokenizer.json (plain or .gz).

    Attributes:
        path: the file, or the directory that holds it; `hf://OWNER/NAME` is fetched from the Hugging Face hub.
        eos_token: the token that ends a document; empty means the one found in tokenizer_config.json beside it,
            or the usual names (</s>, <|endoftext|>, <|end_of_text|>, ...).
    """

    path: str
    eos_token: str = ""

    def __post_init__(self) -> None:
        require(self.path != "", "path", self.path, "name a tokenizer.json or its directory")


class BytesTokenizer(Choice, frozen=True, kw_only=True, tag="bytes"):
    """One token a byte of UTF-8, and one that ends a document: 257 in all."""


TokenizerConfig = SentencePieceTokenizer | HuggingFaceTokenizer | BytesTokenizer


class PhaseConfig(Section, frozen=True, kw_only=True):
    """A stretch of the run with one sequence length and one batch size.

    Attributes:
        sequence_length: tokens of a sample. The lengths of a run's phases had better divide each other: pieces of
            their least common multiple are what is shuffled.
        batch_size: samples of a global batch, over all devices and micro-batches.
        steps: attempts that the phase lasts; or, instead,
        tokens: tokens that the phase lasts, rounded up to whole batches.
        mixture: weights of the sources by name, as in { code = 3, books = 1 }: a source gives its weight's share of
            the samples; empty means all sources, by their numbers of training tokens. A source that no phase takes
            is for evaluation only.
    """

    sequence_length: int = 2048
    batch_size: int = 8
    steps: int = 0
    tokens: int = 0
    mixture: dict[str, float] = {}  # noqa: RUF012 (msgspec copies it)

    def __post_init__(self) -> None:
        require(self.sequence_length >= 2, "sequence_length", self.sequence_length, "use 2 or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "use 1 or more")
        require(self.steps >= 0, "steps", self.steps, "use 1 or more")
        require(self.tokens >= 0, "tokens", self.tokens, "use 1 or more")
        require((self.steps > 0) != (self.tokens > 0), "steps", self.steps, "give either steps or tokens, above 0")
        for name, weight in self.mixture.items():
            field = dotted(("mixture", name))
            require(0 < weight < math.inf, field, weight, "use a weight above 0, or leave the source out")

    def __hash__(self) -> int:  # dicts have none
        numbers = self.sequence_length, self.batch_size, self.steps, self.tokens
        return hash((numbers, frozenset(self.mixture.items())))

    @property
    def num_steps(self) -> int:
        """Batches of the phase."""
        return self.steps or -(-self.tokens // (self.sequence_length * self.batch_size))


class DataConfig(Section, frozen=True, kw_only=True):
    """Documents, tokenizer, store and order.

    Attributes:
        sources: where the documents come from.
        tokenizer: how they become tokens.
        store: directory of the tokenised store; empty means one named after what it holds, under `stores/`.
        held_out_fraction: share of the documents that training never sees; a source of few documents gives the
            end of each instead.
        phases: what is trained on, one after the other.
        seed: of the order of samples.
        shuffle: whether samples are permuted; off, they come as the sources hold them.
        prefetch: batches prepared ahead of the step.
    """

    sources: tuple[SourceConfig, ...] = (SourceConfig(path=EMBEDDED, name="python"),)
    tokenizer: TokenizerConfig = SentencePieceTokenizer()
    store: str = ""
    held_out_fraction: float = 0.02
    phases: tuple[PhaseConfig, ...]
    seed: int = 0
    shuffle: bool = True
    prefetch: int = 4

    def __post_init__(self) -> None:
        require(len(self.sources) >= 1, "sources", [], "give at least one source")
        names = self.source_names
        require(len(set(names)) == len(names), "sources", names, "two sources have one name; name them apart")
        require(len(self.phases) >= 1, "phases", [], "give one phase, with sequence_length, batch_size and steps")
        for index, phase in enumerate(self.phases):
            for name, weight in phase.mixture.items():
                field = dotted(("phases", index, "mixture", name))
                require(name in names, field, weight, f"no source is called so; {_meant(name, names)}")
        require(
            0 < self.held_out_fraction < 1,
            "held_out_fraction",
            self.held_out_fraction,
            "use a fraction between 0 and 1 such as 0.02",
        )
        require("://" not in self.store, "store", self.store, "it is mapped into memory; name a local directory")
        require(self.seed >= 0, "seed", self.seed, "use 0 or more")
        require(self.prefetch >= 1, "prefetch", self.prefetch, "use 1 or more")

    @property
    def source_names(self) -> list[str]:
        """What the sources are called, in their order."""
        return [source.name or source.path for source in self.sources]

    @property
    def num_steps(self) -> int:
        """Batches of all phases: attempts of the run."""
        return sum(phase.num_steps for phase in self.phases)

    @property
    def unit(self) -> int:
        """Tokens of a piece that holds a whole number of samples of every phase."""
        return math.lcm(*(phase.sequence_length for phase in self.phases))


def _meant(name: str, names: Collection[str]) -> str:
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"the sources are {', '.join(names)}"
