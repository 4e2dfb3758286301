"""Small JSON files that carry the SHA-256 of their content, so that damage is found."""

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
