"""A YAML file as plain data that remembers its lines, read as hostile input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from axzoo.core.errors import AxzooError

MAX_BYTES = 4 << 20  # ten thousand models; bounds the memory a hostile file can take
MAX_DEPTH = 16
MAX_NUMBER_LENGTH = 32  # more digits are a commit or a digest

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
class Place:
    """Where a value stands: the line, from 1, of its key or list item, and the places of what is inside it."""

    line: int
    inside: dict[str | int, Place] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A file's data (str, int, float, bool, None, list, dict with str keys; the root is a dict) and its places."""

    path: Path
    data: dict[str, Any]
    root: Place

    def line(self, loc: Sequence[str | int]) -> int:
        """The line of the key or list item at `loc`, or of the innermost thing around it that is written."""
        place = self.root
        for part in loc:
            if part not in place.inside:
                break
            place = place.inside[part]
        return place.line


def read_document(path: Path) -> Document:
    """Reads one YAML mapping.

    Raises AxzooError, with the line where there is one, when the file is missing, too large, not UTF-8, not YAML, not
    a mapping, or holds what a plain configuration does not need: duplicate keys, keys that are not text, tags, aliases
    (a few of them can stand for gigabytes), deep nesting.
    """
    text = _read_text(path)
    try:
        data, root = _Reader(path, _Loader(text)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise AxzooError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise AxzooError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        raise AxzooError(f"{path} is empty: it must hold a mapping of keys to values")
    if not isinstance(data, dict):
        raise AxzooError(f"{path}:{root.line}: the file must hold a mapping of keys to values, not {data!r:.60}")
    return Document(path, data, root)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
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
    """Builds data from the parser's events, since PyYAML's own composer follows aliases and recurses without bound."""

    def __init__(self, path: Path, loader: Any) -> None:
        self._path = path
        self._loader = loader

    def document(self) -> tuple[Any, Place]:
        """The stream's only document; None when the file holds nothing."""
        self._next()
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None, Place(1)
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

    def _value(self, event: Any, depth: int) -> tuple[Any, Place]:
        if isinstance(event, yaml.AliasEvent):
            raise self._error(event, "YAML aliases ('*') are not read here: put shared values under 'defaults'")
        if event.tag is not None:
            raise self._error(event, f"YAML tags ({event.tag!r:.60}) are not read here: write a plain value")
        if depth > MAX_DEPTH:
            raise self._error(event, f"nested deeper than {MAX_DEPTH} levels")
        place = Place(event.start_mark.line + 1)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(place, depth), place
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(place, depth), place
        return self._scalar(event), place

    def _sequence(self, place: Place, depth: int) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            item, place.inside[len(items)] = self._value(event, depth + 1)
            items.append(item)
        return items

    def _mapping(self, place: Place, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event)
            if key in data:
                first = place.inside[key].line
                raise self._error(event, f"the key {key!r:.60} is given twice, first in line {first}: remove one")
            data[key], value_place = self._value(self._next(), depth + 1)
            place.inside[key] = Place(event.start_mark.line + 1, value_place.inside)
        return data

    def _key(self, event: Any) -> str:
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            raise self._error(event, "a key must be text, not a list or a mapping")
        key, _ = self._value(event, 0)
        if key == "<<" and event.implicit[0]:  # not in quotes
            raise self._error(event, "YAML merges ('<<') are not read here: put shared values under 'defaults'")
        if not isinstance(key, str):
            raise self._error(event, f"the key {event.value!r:.60} is not text: put it in quotes")
        return key

    def _scalar(self, event: Any) -> Any:
        """Text, unless it is a number, a truth value or nothing; dates are versions here, and text."""
        tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        construct = _CONSTRUCT.get(tag)
        if construct is None or len(event.value) > MAX_NUMBER_LENGTH:
            return event.value
        try:
            return construct(yaml.ScalarNode(tag, event.value))
        except ValueError:
            raise self._error(event, f"{event.value!r} is not a number that can be read: put text in quotes") from None
