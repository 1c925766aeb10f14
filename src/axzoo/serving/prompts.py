"""Converts the prompts of requests to token ids, and tokens to text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from axzoo.runtime.prompting import PromptEnds, TokenizerChoice
from axzoo.serving.chat_requests import ChatPrompt, TextPrompt
from axzoo.tokenizer.local import LocalTokenizer

_REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class PromptEncoder:
    """A model's tokenizer. Without `chat`, the messages of a conversation are concatenated without a template."""

    tokenizer: LocalTokenizer
    choice: TokenizerChoice
    chat: bool

    def knows(self, variable: str) -> bool:
        """Whether the chat template uses a variable."""
        return self.chat and self.tokenizer.template_uses(variable)

    def encode(self, prompt: ChatPrompt | TextPrompt) -> list[int]:
        """Return the token ids of a prompt. Raises AxzooError when it cannot be encoded."""
        if isinstance(prompt, TextPrompt) and not isinstance(prompt.content, str):
            return list(prompt.content)
        ends = PromptEnds.of(self.choice, self.tokenizer.bos_token_id, self.tokenizer.eos_token_ids)
        return ends.add(self._encode(prompt))

    def token_text(self, token: int) -> str:
        """Return the text of a token within an answer. Bytes that are not a whole character become U+FFFD."""
        alone = self.tokenizer.decode([token], False)
        twice = self.tokenizer.decode([token, token], False)
        return alone if _REPLACEMENT in alone else twice[len(alone) :]  # some tokenizers drop a space at the start

    def _encode(self, prompt: ChatPrompt | TextPrompt) -> list[int]:
        if isinstance(prompt, TextPrompt):
            assert isinstance(prompt.content, str)
            return self.tokenizer.encode(prompt.content)
        if not self.chat:
            return self.tokenizer.encode("".join(message["content"] for message in prompt.messages))
        variables: Mapping[str, object] = prompt.variables
        return self.tokenizer.encode_chat(prompt.messages, variables=variables)
