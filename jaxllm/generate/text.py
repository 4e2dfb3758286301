"""Tokens into text while they come.

A token may be a part of a character, and its text may depend on the tokens before it (SentencePiece leaves out a space
at the beginning). So tokens are decoded together with those before them, and characters that may still change, U+FFFD
at the end, are held back until they cannot.
"""

from collections.abc import Sequence

from jaxllm.data.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"


class TextStream:
    """The text of one row.

    Args:
        tokenizer: of the tokens.
        prompt: ids before the text; at their end too, an unfinished character is held back.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._decode = tokenizer.decode
        self._ids = list(prompt)
        self._shown, self._whole = len(certain(self._decode(self._ids))), 0

    def add(self, token: int) -> str:
        """The text that is certain with this token; empty where that is none yet."""
        self._ids.append(token)
        text = self._decode(self._ids)
        new = self._take(certain(text))
        if not text.endswith(_UNKNOWN):
            # nothing is held back: those since the last time it was so are enough to decode the next with
            self._ids = self._ids[self._whole :]
            self._shown, self._whole = len(self._decode(self._ids)), len(self._ids)
        return new

    def end(self) -> str:
        """What was held back."""
        return self._take(self._decode(self._ids))

    def _take(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new


def certain(text: str) -> str:
    """A text without what may be an unfinished character at its end."""
    return text.rstrip(_UNKNOWN)


class IdStream:
    """Of a model without a tokenizer: its ids, behind those of the prompt."""

    def add(self, token: int) -> str:
        """A comma and the id."""
        return f",{token}"

    def end(self) -> str:
        """Nothing."""
        return ""
