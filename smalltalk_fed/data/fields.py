"""Which fields of a record are read, and what they may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from smalltalk_fed.errors import DataError, shown


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of the fields with the text, the label and the split; None: not wanted."""

    text: str = "text"
    label: str | None = None
    split: str | None = None

    @property
    def names(self) -> list[str]:
        """The fields that must be there."""
        return [name for name in (self.text, self.label, self.split) if name is not None]

    def check(self, there: list[str], where: str) -> None:
        """Raises DataError if one of the fields is not among those that are `there`."""
        for name in self.names:
            if name not in there:
                raise DataError(f"{where}: there is no field '{name}'; it has {_list(there)}.")

    def take(self, record: Mapping[str, object], where: str) -> tuple[str, str | None, str | None]:
        """Text, label and split of a record.

        Raises:
            DataError: a field is missing, or is not text (label: text or an integer).
        """
        if any(name not in record for name in self.names):
            self.check(list(record), where)
        text = record[self.text]
        if not isinstance(text, str):
            raise DataError(f"{where}: field '{self.text}' is {_kind(text)}, not text.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: field '{self.text}' has half of a surrogate pair at character "
                f"{error.start}, which is no text."
            ) from None
        label = None if self.label is None else _name(record[self.label], self.label, where)
        split = None if self.split is None else _name(record[self.split], self.split, where)
        return text, label, split


def _name(value: object, field: str, where: str) -> str:
    if isinstance(value, str | int):
        return str(value)
    raise DataError(f"{where}: field '{field}' is {_kind(value)}, not a name or a number.")


def _list(names: list[str]) -> str:
    return shown(", ".join(name[:40] for name in names[:20]), 300) or "none"


def _kind(value: object) -> str:
    return "empty (null)" if value is None else f"of type {type(value).__name__}"
