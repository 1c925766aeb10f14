"""Chat templates, rendered as transformers renders them, in a process that cannot harm its caller.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from Python's objects, but not from
looping for ever or from doubling a string until memory ends; only a process of its own, with limits, does. It costs
about 80 ms.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from axzoo.errors import AxzooError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, str]
"""One turn: {"role": "system" | "user" | "assistant", "content": text}."""

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 22
_MEMORY_BYTES = 1 << 29
_CPU_SECONDS = 2
_WALL_SECONDS = 30  # generous: the machine may be busy


def render_chat(
    template: str, messages: Sequence[Message], special_tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """Renders `messages` through a Jinja `template`; `special_tokens` are its bos_token, eos_token, ... variables.

    Raises AxzooError when the template is not valid, refuses the messages (`raise_exception`), reaches for something
    the sandbox forbids, or needs more than 2 s, 512 MiB or 4 Mi characters of output.
    """
    if len(template) > MAX_TEMPLATE_CHARS:
        raise AxzooError(f"the chat template has {len(template)} characters, more than {MAX_TEMPLATE_CHARS}")
    request = json.dumps([template, [dict(m) for m in messages], dict(special_tokens), add_generation_prompt])
    limits = f"the chat template does not finish within {_CPU_SECONDS} s and {_MEMORY_BYTES >> 20} MiB: it is broken"
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-m", "axzoo.tokenizer.chat_template"],
            input=request.encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WALL_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise AxzooError(limits) from error
    if process.returncode != 0:
        raise AxzooError(limits)
    reply: dict[str, str] = json.loads(process.stdout)
    if "error" in reply:
        raise AxzooError(f"the chat template cannot render these messages: {reply['error']}")
    return reply["text"]


def _environment() -> ImmutableSandboxedEnvironment:
    """The names a template may expect: those of transformers.apply_chat_template."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is transparent."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own form

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
    template: str, messages: list[dict[str, str]], special_tokens: dict[str, str], add_generation_prompt: bool
) -> str:
    pieces = []
    length = 0
    variables = {**special_tokens, "tools": None, "documents": None, "messages": messages}
    for piece in _environment().from_string(template).generate(variables, add_generation_prompt=add_generation_prompt):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_RENDERED_CHARS:
            raise OverflowError(f"it writes more than {MAX_RENDERED_CHARS} characters")
    return "".join(pieces)


def _main() -> None:
    """The child: one request on stdin, one reply on stdout."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        reply = {"text": _render(*json.load(sys.stdin.buffer))}
    except Exception as error:  # whatever the template's program raises is the answer
        reply = {"error": (str(error) or type(error).__name__)[:500].replace("\n", " ")}
    sys.stdout.write(json.dumps(reply))


if __name__ == "__main__":
    _main()
