"""Renders chat templates as transformers does, in a separate process with resource limits.

A template is a program that comes with a checkpoint. Jinja's sandbox denies it access to Python's internals, but does
not stop it from looping forever or exhausting memory, so it runs in a separate process with limits. Starting that
process takes about 80 ms, so it is reused for later conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.child_process import ChildError, ChildProcess, Limits

Message = Mapping[str, str]
"""One turn: {"role": "system" | "user" | "assistant", "content": text}."""

NO_VARIABLES: Mapping[str, object] = MappingProxyType({})

MAX_TEMPLATE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 1 << 22
LIMITS = Limits(memory=1 << 29, cpu_seconds=2)


def render_chat(
    template: str, messages: Sequence[Message], special_tokens: Mapping[str, str], add_generation_prompt: bool
) -> str:
    """Render a single conversation; see ChatRenderer.render."""
    renderer = ChatRenderer(template, special_tokens)
    try:
        return renderer.render(messages, add_generation_prompt)
    finally:
        renderer.close()


class ChatRenderer:
    """A Jinja template and the process that renders it. Thread-safe.

    The process starts with the first conversation and ends with this object. If a conversation exceeds the limits, the
    process is replaced.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        """`special_tokens` are the template variables bos_token, eos_token, ..."""
        self._length = len(template)
        self._child = ChildProcess("axzoo.tokenizer.template_process", [template, dict(special_tokens)], LIMITS)

    def render(
        self, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, object] = NO_VARIABLES
    ) -> str:
        """Return the text of a conversation. `variables` are further template variables, such as enable_thinking.

        Raises AxzooError when the template is not valid, rejects the messages (`raise_exception`), violates the
        sandbox, or needs more than 2 s, 512 MiB or 4 Mi characters of output.
        """
        if self._length > MAX_TEMPLATE_CHARS:
            raise AxzooError(f"the chat template has {self._length} characters; the limit is {MAX_TEMPLATE_CHARS}")
        turns = [dict(message) for message in messages]
        try:
            text: str = self._child.ask([turns, add_generation_prompt, dict(variables)], LIMITS)
        except ChildError as error:
            raise AxzooError(f"the chat template cannot render these messages: {error}") from None
        return text

    def close(self) -> None:
        """End the process. The next conversation starts a new one."""
        self._child.close()
