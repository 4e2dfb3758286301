"""Tokens into text while they come.

A token may be a part of a character, and its text may depend on the tokens before it (SentencePiece leaves out a space
at the beginning). So tokens are decoded together with those before them, and characters that may still change, U+FFFD
at the end, are held back until they cannot.
"""

from collections.abc import Sequence

from jaxllm.data.tokenizer import Tokenizer

_UNKNOWN = "\ufffd"
_BEFORE = 8
"""Tokens of a prompt that are decoded with the first ones behind it."""


class TextStream:
    """The text of one row.

    Args:
        tokenizer: of the tokens.
        prompt: ids before the text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = [one for one in prompt if one < tokenizer.vocab_size][-_BEFORE:]
        self._shown = len(self._decode())

    def add(self, token: int) -> str:
        """The text that is certain with this token; empty where that is none yet."""
        self._ids.append(token)
        return self._take(self._decode().rstrip(_UNKNOWN))

    def end(self) -> str:
        """What was held back."""
        return self._take(self._decode())

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids)

    def _take(self, text: str) -> str:
        new, self._shown = text[self._shown :], max(self._shown, len(text))
        return new


class IdStream:
    """Of a model without a tokenizer: its ids, behind those of the prompt."""

    def add(self, token: int) -> str:
        """A comma and the id."""
        return f",{token}"

    def end(self) -> str:
        """Nothing."""
        return ""
