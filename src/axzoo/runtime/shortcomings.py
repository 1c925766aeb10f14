"""What a host program cannot do because the checkpoint lacks something that a build does not need."""

from __future__ import annotations

NO_TOKENIZER = "its files take and return token ids; `axzoo run` and `serve` need a folder with the model's tokenizer"
NO_TEMPLATE = "prompts are continued as text"
NO_END = "answers end at their token limit, or when the context is full"
