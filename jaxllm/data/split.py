"""Which text is held out from training.

A source of twenty documents or more is split by document: a document is held out if the hash of its source's name and
its own identifier, read as a number from 0 to 1, is below the fraction. The choice depends on nothing else, neither on
the order of documents nor on those added later. So that neither split is empty, of the first twenty documents the one
with the smallest hash is always held out and the one with the largest always trained on.

A source of fewer documents gives the end of each: the cut is at the line end nearest to the fraction, or, where no line
ends within half the held-out part of it, exactly there.
"""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, Self

from jaxllm.config import SourceConfig
from jaxllm.data.corpus import Document, documents
from jaxllm.data.files import SourceFile

SplitName = Literal["train", "held_out"]
SPLITS: tuple[SplitName, SplitName] = ("train", "held_out")

MIN_DOCUMENTS = 20
"""A source of fewer is split inside its documents."""


class Split(NamedTuple):
    """The split of one source.

    Attributes:
        source: its name.
        fraction: held out, from 0 to 1.
        inside: whether documents are cut instead of chosen.
        held_out: identifier of the document that is always held out.
        train: identifier of the one that never is.
    """

    source: str
    fraction: float
    inside: bool
    held_out: str = ""
    train: str = ""

    @classmethod
    def of(cls, source: str, documents: Iterable[Document], fraction: float) -> Self:
        """The split of a source by its name and documents, of which the first twenty are read."""
        first = [document.identifier for document in itertools.islice(documents, MIN_DOCUMENTS)]
        if len(first) < MIN_DOCUMENTS:
            return cls(source, fraction, inside=True)
        ranked = sorted(first, key=lambda identifier: _rank(source, identifier))
        return cls(source, fraction, inside=False, held_out=ranked[0], train=ranked[-1])

    def parts(self, document: Document) -> list[tuple[SplitName, Document]]:
        """What of a document goes where: one part, or two that begin and end it."""
        identifier, text = document
        if not self.inside:
            below = _rank(self.source, identifier) < self.fraction
            held_out = identifier == self.held_out or (below and identifier != self.train)
            return [("held_out" if held_out else "train", document)]
        if len(text) < 2:
            return [("train", document)]
        cut = _cut(text, self.fraction)
        return [
            ("train", Document(f"{identifier}#characters=0-{cut}", text[:cut])),
            ("held_out", Document(f"{identifier}#characters={cut}-{len(text)}", text[cut:])),
        ]


class SplitSource(NamedTuple):
    """A source with its files and its split, as a build goes through it."""

    config: SourceConfig
    files: Sequence[SourceFile]
    split: Split

    @classmethod
    def of(cls, config: SourceConfig, files: Sequence[SourceFile], held_out_fraction: float) -> Self:
        """The source, split by its name, or its path if it has none."""
        return cls(config, files, Split.of(config.name or config.path, documents(config), held_out_fraction))

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return sum(file.size for file in self.files)


def _rank(source: str, identifier: str) -> float:
    digest = hashlib.sha256(f"{source}\0{identifier}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _cut(text: str, fraction: float) -> int:
    """Where the held-out end of a text begins, in characters: at least 1, at most one less than there are."""
    target = min(max(round(len(text) * (1 - fraction)), 1), len(text) - 1)
    reach = (len(text) - target) // 2
    before = text.rfind("\n", max(target - reach - 1, 0), target) + 1
    after = text.find("\n", target, min(target + reach, len(text) - 1)) + 1
    ends = [end for end in (before, after) if end > 0]
    return min(ends, key=lambda end: abs(end - target), default=target)
