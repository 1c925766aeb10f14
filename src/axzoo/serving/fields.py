"""Reads the JSON objects of requests key by key. Errors name the key and say in words what it must be."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from axzoo.core.errors import AxzooError

_T = TypeVar("_T")

Unsupported = Mapping[str, tuple[Collection[object], str]]
"""Keys that would change the answer, but are not implemented: their values without effect, and advice."""


class Fields:
    """An object of a request. A key whose value is null counts as absent, whatever its type.

    The methods return None for an absent key, and raise AxzooError for a value of the wrong type or out of range.
    `ignored` lists the keys that have a value but were never read.
    """

    def __init__(self, data: dict[str, Any], path: str = "") -> None:
        self._data = data
        self._path = path
        self._unread = {name: None for name, value in data.items() if value is not None}  # a set that keeps the order
        self._children: list[Fields] = []

    def value(self, name: str) -> Any:
        """Return a value of any type."""
        self._unread.pop(name, None)
        return self._data.get(name)

    def names(self) -> list[str]:
        """Return the keys that have a value."""
        return [name for name, value in self._data.items() if value is not None]

    def peek(self) -> Fields:
        """Return the same object, to look at values without counting them as read."""
        return Fields(self._data, self._path)

    def flag(self, name: str) -> bool | None:
        found: bool | None = self._typed(name, (bool,), "true or false")
        return found

    def text(self, name: str, max_length: int | None = None) -> str | None:
        found: str | None = self._typed(name, (str,), "a string")
        if found is not None and max_length is not None and len(found) > max_length:
            raise self.error(name, f"must have at most {max_length} characters, not {len(found)}")
        return found

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Return a whole number from `low` to `high`."""
        found: int | None = self._typed(name, (int,), "a whole number")
        if found is not None and not low <= found <= high:
            raise self.error(name, f"must be a whole number from {low} to {high}, not {shown(found)}")
        return found

    def number(self, name: str, low: float, high: float) -> float | None:
        """Return a number from `low` to `high`."""
        found: float | None = self._typed(name, (int, float), "a number")
        if found is not None and not low <= found <= high:
            raise self.error(name, f"must be from {low:g} to {high:g}, not {shown(found)}")
        return found

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        found = self.text(name)
        if found is not None and found not in allowed:
            raise self.error(name, f"must be one of {', '.join(allowed)}, not {found[:40]!r}")
        return found

    def items(self, name: str, max_items: int) -> list[Any] | None:
        found: list[Any] | None = self._typed(name, (list,), "a list")
        if found is not None and len(found) > max_items:
            raise self.error(name, f"must have at most {max_items} items, not {len(found)}")
        return found

    def child(self, name: str) -> Fields | None:
        """Return an object."""
        found = self._typed(name, (dict,), "an object")
        return None if found is None else self._child(found, name)

    def children(self, name: str, max_items: int) -> list[Fields] | None:
        """Return a list of objects."""
        found = self.items(name, max_items)
        if found is None:
            return None
        for index, item in enumerate(found):
            if not isinstance(item, dict):
                raise self.error(f"{name}.{index}", f"must be an object, not {_kind(item)}")
        return [self._child(item, f"{name}.{index}") for index, item in enumerate(found)]

    def required(self, value: _T | None, name: str) -> _T:
        """Return the value. Raises AxzooError when it is absent."""
        if value is None:
            raise self.error(name, "must not be null" if name in self._data else "missing")
        return value

    def refuse(self, unsupported: Unsupported) -> None:
        """Raise AxzooError unless each of the keys is absent or has a value without effect."""
        for name, (harmless, advice) in unsupported.items():
            value = self.value(name)
            if value is not None and not any(type(value) is type(other) and value == other for other in harmless):
                raise self.error(name, f"not supported here: {advice}")

    def error(self, name: str, problem: str) -> AxzooError:
        return AxzooError(f"{self._join(name)}: {problem}")

    def ignored(self) -> Iterator[str]:
        """Yield the paths of the keys that were never read, without the positions in lists; a path may repeat."""
        for name in self._unread:
            yield ".".join(part for part in self._join(name).split(".") if not part.isdigit())
        for child in self._children:
            yield from child.ignored()

    def _typed(self, name: str, types: tuple[type, ...], wanted: str) -> Any:
        value = self.value(name)
        if value is None or (type(value) in types and value == value and value not in (math.inf, -math.inf)):
            return value
        raise self.error(name, f"must be {wanted}, not {_kind(value)}")

    def _child(self, data: dict[str, Any], name: str) -> Fields:
        child = Fields(data, self._join(name))
        self._children.append(child)
        return child

    def _join(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name


def read_object(body: bytes) -> Fields:
    """Parse the body of a request. Raises AxzooError when it is not a JSON object."""
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise AxzooError(f"Invalid JSON: {error}") from None
    if not isinstance(data, dict):
        raise AxzooError(f"the body must be a JSON object, not {_kind(data)}")
    return Fields(data)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is out of range"
    names: dict[type, str] = {int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "null")


def shown(value: float) -> str:
    """Return a number for a message. An integer with very many digits is not printed."""
    return "a number with many digits" if isinstance(value, int) and abs(value) >= 1 << 64 else repr(value)
