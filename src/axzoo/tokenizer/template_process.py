"""The process that renders a chat template.

axzoo.tokenizer.chat_template runs it as `python -m axzoo.tokenizer.template_process`.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from axzoo.tokenizer.chat_template import MAX_RENDERED_CHARS
from axzoo.tokenizer.child_process import answer_requests

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


def main() -> None:
    """Answer requests until end of input. The first one is [template, special tokens], the others are conversations."""
    answer_requests(_TemplateRequests())


class _TemplateRequests:
    """A template, which is compiled with the first conversation, so that its errors belong to that."""

    def __init__(self) -> None:
        self._template = ""
        self._special_tokens: dict[str, str] | None = None
        self._compiled: Template | None = None

    def __call__(self, request: Any) -> str | None:
        if self._special_tokens is None:
            self._template, self._special_tokens = request
            return None
        self._compiled = self._compiled or _environment().from_string(self._template)
        return _render(self._compiled, self._special_tokens, *request)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment with the functions and filters of transformers.apply_chat_template."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks assistant text for training; here it has no effect."""

        tags = {"generation"}  # noqa: RUF012 - Jinja requires this form

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _render(
    compiled: Template,
    special_tokens: dict[str, str],
    messages: list[dict[str, str]],
    add_generation_prompt: bool,
    others: dict[str, object],
) -> str:
    pieces = []
    length = 0
    variables = {**others, **special_tokens, "tools": None, "documents": None, "messages": messages}
    for piece in compiled.generate(variables, add_generation_prompt=add_generation_prompt):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_RENDERED_CHARS:
            raise OverflowError(f"its output has more than {MAX_RENDERED_CHARS} characters")
    return "".join(pieces)


if __name__ == "__main__":
    main()
