"""Mutations of valid files. They stay close to the originals, so that readers process most of them before failing."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 1e308, -1e308, 5e-324, float("nan"), float("inf")),
    *("", "\0", "../../../etc/passwd", "/etc/passwd", "a\nb", "\ud800", "model", "llama", "x" * 5000, "1", "F32"),
    *([], {}, [[[[]]]], [None], [-1], [2**62, 2**62], ["../x"], {"": {}}, {"__class__": "os.system"}),
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> bytes:
    """A JSON document with one to three values replaced, removed or renamed."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(changed)))
        if not path:
            changed = copy.deepcopy(draw(st.sampled_from(NASTY))) if draw(st.integers(0, 9)) == 0 else changed
            continue
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        match draw(st.sampled_from(["replace", "replace", "remove", "rename"])):
            case "replace":
                parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(NASTY) | st.integers() | st.text(max_size=20)))
            case "remove":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=12) | st.sampled_from(["../x", "a/b", "\0"]))] = parent.pop(path[-1])
    return json.dumps(changed).encode()


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes, depth: int | None = None) -> bytes:
    """Bytes overwritten, removed or inserted within the first `depth` bytes, or everything after them cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(changed), depth or len(changed)) - 1)))
        piece = draw(
            st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"{", b'"']) | st.binary(max_size=9)
        )
        match draw(st.sampled_from(["write", "write", "insert", "cut", "end"])):
            case "write":
                changed[at : at + len(piece)] = piece
            case "insert":
                changed[at:at] = piece
            case "cut":
                del changed[at : at + draw(st.integers(1, 16))]
            case "end":
                del changed[at:]
    return bytes(changed)
