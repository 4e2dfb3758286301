"""The one kind of config section: frozen, keyword-only, unknown fields forbidden."""

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of the experiment. Subclasses document every field in an `Attributes` block of their docstring."""


class Choice(Section, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """A section that is one of several kinds, told apart by its field `type`."""


class FieldError(ValueError):
    """What a section says of a field: `field = value: fix`.

    Attributes:
        field: its name inside the section, dotted where it lies in one below.
        fix: what to do about it.
    """

    def __init__(self, field: str, value: object, fix: str) -> None:
        super().__init__(f"{field} = {value!r}: {fix}")
        self.field, self.fix = field, fix


def require(condition: bool, field: str, value: object, fix: str) -> None:
    """Raise the one sentence that a user reads when a field holds what it must not.

    Args:
        condition: what must hold.
        field: the field's name inside its section; the loader puts the section's path before it.
        value: what the field holds.
        fix: what to do about it.

    Raises:
        FieldError: `field = value: fix`, when the condition does not hold.
    """
    if not condition:
        raise FieldError(field, value, fix)
