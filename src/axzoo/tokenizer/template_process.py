"""The process that renders a chat template. It reads the template from a line on stdin, then one conversation per line.

axzoo.tokenizer.chat_template runs it as `python -m axzoo.tokenizer.template_process`.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from axzoo.tokenizer.chat_template import CPU_SECONDS, MAX_RENDERED_CHARS, MEMORY_BYTES

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment


def main() -> None:
    """Write one reply to stdout for each conversation on stdin, until end of input."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    template, special_tokens = json.loads(sys.stdin.buffer.readline())
    compiled = None
    for line in sys.stdin.buffer:
        _grant_cpu_time()
        try:
            compiled = compiled or _environment().from_string(template)
            reply = {"text": _render(compiled, special_tokens, *json.loads(line))}
        except Exception as error:  # a template may raise anything; the caller gets the message
            reply = {"error": (str(error) or type(error).__name__)[:500].replace("\n", " ")}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


def _grant_cpu_time() -> None:
    """Limit the CPU time of the next conversation. The kernel's limit counts from the start of the process."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time()) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


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
