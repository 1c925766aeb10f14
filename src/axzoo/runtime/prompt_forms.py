"""How ax-llm's main_prefill writes a prompt, by --tokenizer_type: for a local tokenizer without a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from axzoo.tokenizer.chat_template import Message

LLAMA, QWEN, HTTP, PHI3, MINICPM = range(5)
"""Values of --tokenizer_type."""


@dataclass(frozen=True)
class PromptForm:
    """The text before and after each role's message; roles left out are not written."""

    around: Mapping[str, tuple[str, str]]
    answer: str
    opening: str = ""
    """Stands for a system message where there is none."""

    def write(self, messages: Sequence[Message]) -> str:
        """A conversation as text, up to where the answer begins."""
        opening = "" if any(message["role"] == "system" for message in messages) else self.opening
        said = (self._write_one(message) for message in messages)
        return opening + "".join(said) + self.answer

    def _write_one(self, message: Message) -> str:
        before, after = self.around[message["role"]]
        return before + message["content"] + after


def _chatml(role: str) -> tuple[str, str]:
    return f"<|im_start|>{role}\n", "<|im_end|>\n"


PROMPT_FORMS: dict[int, PromptForm] = {
    LLAMA: PromptForm(
        {"system": ("<|system|>\n", "</s>"), "user": ("<|user|>\n", "</s>"), "assistant": ("<|assistant|>\n", "</s>")},
        "<|assistant|>\n",
    ),
    QWEN: PromptForm(
        {role: _chatml(role) for role in ("system", "user", "assistant")},
        "<|im_start|>assistant\n",
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    ),
    PHI3: PromptForm(
        {
            "system": ("<|system|>", " <|end|>"),
            "user": ("<|user|>", " <|end|>"),
            "assistant": ("<|assistant|>", "<|end|>"),
        },
        "<|assistant|>",
    ),
    MINICPM: PromptForm(
        {"system": ("", ""), "user": ("<用户>", ""), "assistant": ("<AI>", "")},
        "<AI>",
    ),
}
