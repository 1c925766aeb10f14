"""The matrix file's JSON Schema, for editors: generated from the models, kept in workflow/schemas/zoo.schema.json."""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from axzoo.zoo.models import Zoo


class _WithoutTitles(GenerateJsonSchema):
    """pydantic's titles only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def zoo_schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    schema = Zoo.model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema}


def schema_text() -> str:
    """The schema as its file holds it."""
    return json.dumps(zoo_schema(), indent=2, ensure_ascii=False) + "\n"
