"""Small JSON files that carry the SHA-256 of their content, so that damage is found; and errors in one line."""

import hashlib

import msgspec


class DamagedError(ValueError):
    """A file of a checkpoint, or of the ledger, does not hold what was written."""


class _Sealed(msgspec.Struct, frozen=True):
    sha256: str
    content: msgspec.Raw


def seal(content: msgspec.Struct) -> bytes:
    """A JSON object that carries the checksum of its content's very bytes."""
    encoded = msgspec.json.encode(content)
    return msgspec.json.encode(_Sealed(hashlib.sha256(encoded).hexdigest(), msgspec.Raw(encoded)))


def unseal[T](name: str, sealed: bytes, kind: type[T]) -> T:
    """What a file holds.

    Raises:
        DamagedError: its checksum does not fit, or it is not of the kind.
    """
    try:
        outer = msgspec.json.decode(sealed, type=_Sealed)
        if hashlib.sha256(outer.content).hexdigest() != outer.sha256:
            raise DamagedError(f"{name} is damaged: its checksum does not fit its content")
        return msgspec.json.decode(outer.content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DamagedError(f"{name} is damaged ({error})") from error


def sentence(error: Exception) -> str:
    """An error in one line, not too long; what caused it is at the end."""
    text = (str(error).splitlines() or [""])[0].partition(" [")[0]  # TensorStore appends what it was asked, in brackets
    return f"{type(error).__name__}: {text if len(text) <= 300 else f'{text[:100]} ... {text[-200:]}'}"
