"""Reads an untrusted YAML file as plain data with line numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from axzoo.core.errors import AxzooError
from axzoo.core.files import open_regular

MAX_BYTES = 4 << 20  # enough for ten thousand models; limits the memory that a malicious file can use
MAX_DEPTH = 16
MAX_NUMBER_LENGTH = 32  # longer values are commits or digests, not numbers

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_SAFE = yaml.constructor.SafeConstructor()
_CONSTRUCT = {
    f"{_TAG}null": _SAFE.construct_yaml_null,
    f"{_TAG}bool": _SAFE.construct_yaml_bool,
    f"{_TAG}int": _SAFE.construct_yaml_int,
    f"{_TAG}float": _SAFE.construct_yaml_float,
}


@dataclass(frozen=True)
class Location:
    """The line of a value's key or list item, counted from 1, and the locations of the values it contains."""

    line: int
    children: dict[str | int, Location] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A file's data (str, int, float, bool, None, list, dict with str keys; the root is a dict) and its locations."""

    path: Path
    data: dict[str, Any]
    root: Location

    def line(self, loc: Sequence[str | int]) -> int:
        """The line of the key or list item at `loc`; if it is not in the file, the line of its innermost parent."""
        location = self.root
        for part in loc:
            if part not in location.children:
                break
            location = location.children[part]
        return location.line


def read_document(path: Path) -> Document:
    """Reads a YAML file whose root is a mapping.

    Raises AxzooError, with the line if possible, when the file is missing, too large, not UTF-8, not YAML or not a
    mapping, or when it uses duplicate keys, keys that are not text, tags, aliases (which can expand to gigabytes) or
    deep nesting.
    """
    text = _read_text(path)
    try:
        data, root = _Reader(path, _Loader(text)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        has_tab = any("\t" in part for part in text.split("\n")[line : line + 1])
        tab = "; YAML is indented with spaces, and this line contains a tab" if has_tab else ""
        raise AxzooError(f"{path}:{line + 1}: not valid YAML: {error.problem}{tab}") from None
    except yaml.YAMLError as error:
        raise AxzooError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        raise AxzooError(f"{path} is empty: it must contain a mapping of keys to values")
    if not isinstance(data, dict):
        raise AxzooError(f"{path}:{root.line}: the file must contain a mapping of keys to values, not {data!r:.60}")
    return Document(path, data, root)


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise AxzooError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise AxzooError(f"{path} is larger than {MAX_BYTES >> 20} MiB: split it into several files")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AxzooError(f"{path}:{line}: not UTF-8 text: save the file as UTF-8") from None


class _Reader:
    """Builds data from parser events. PyYAML's composer is not used because it expands aliases and its recursion is
    unlimited."""

    def __init__(self, path: Path, loader: Any) -> None:
        self._path = path
        self._loader = loader

    def document(self) -> tuple[Any, Location]:
        """The only document of the file; None if the file is empty."""
        self._next()
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None, Location(1)
        content = self._value(self._next(), 0)
        self._next()
        rest = self._next()
        if not isinstance(rest, yaml.StreamEndEvent):
            raise self._error(rest, "a second YAML document ('---') starts here: keep one per file")
        return content

    def _next(self) -> Any:
        """The next yaml.Event."""
        return self._loader.get_event()

    def _error(self, event: Any, message: str) -> AxzooError:
        return AxzooError(f"{self._path}:{event.start_mark.line + 1}: {message}")

    def _value(self, event: Any, depth: int) -> tuple[Any, Location]:
        if isinstance(event, yaml.AliasEvent):
            raise self._error(event, "YAML aliases ('*') are not supported: put shared values under 'defaults'")
        if event.tag is not None:
            raise self._error(event, f"YAML tags ({event.tag!r:.60}) are not supported: use a plain value")
        if depth > MAX_DEPTH:
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        location = Location(event.start_mark.line + 1)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(location, depth), location
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(location, depth), location
        return self._scalar(event), location

    def _sequence(self, location: Location, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item, location.children[len(items)] = self._value(event, depth + 1)
            items.append(item)
        return items

    def _mapping(self, location: Location, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event)
            if key in data:
                first = location.children[key].line
                raise self._error(event, f"duplicate key {key!r:.60}, first used in line {first}: remove one")
            data[key], value_location = self._value(self._next(), depth + 1)
            location.children[key] = Location(event.start_mark.line + 1, value_location.children)
        return data

    def _key(self, event: Any) -> str:
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            raise self._error(event, "a key must be text, not a list or a mapping")
        key, _ = self._value(event, 0)
        if key == "<<" and event.implicit[0]:  # unquoted
            raise self._error(event, "YAML merges ('<<') are not supported: put shared values under 'defaults'")
        if not isinstance(key, str):
            raise self._error(event, f"the key {event.value!r:.60} is not text: put it in quotes")
        return key

    def _scalar(self, event: Any) -> Any:
        """A number, bool or None, otherwise text. Dates are text too, because they are used as versions."""
        tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        construct = _CONSTRUCT.get(tag)
        if construct is None or len(event.value) > MAX_NUMBER_LENGTH:
            return event.value
        try:
            return construct(yaml.ScalarNode(tag, event.value))
        except ValueError:
            raise self._error(event, f"{event.value!r} is not a valid number: put text in quotes") from None
