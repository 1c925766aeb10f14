"""The choice of axllm's chat template, with templates of the forms that the models of the zoo have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from axzoo.bundle.boards.axllm import TOKENIZER_TYPES
from axzoo.bundle.boards.templates import HOST_TEMPLATES, HostTemplate, TemplateChoice, choose_template
from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import ChatRenderer, Message

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = f"{{% for m in messages %}}{TURN}{{% endfor %}}{ANSWER}"
SYSTEM = "You are a helpful assistant."
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}" + CHATML
)
THINKING = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' + "
    "m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}{% else %}" + TURN + "{% endif %}{% endfor %}"
    + ANSWER + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)  # fmt: skip
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI3 = ZEPHYR.replace("eos_token", "'<|end|>'")
MINICPM2 = (
    "{% for m in messages %}{{ '<用户>' + m['content'] + '<AI>' if m['role'] == 'user' else m['content'] }}{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% set ns = namespace(first='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.first = m['content'] + '\n\n' %}{% else %}{{ '<start_of_turn>' + "
    "('model' if m['role'] == 'assistant' else 'user') + '\n' + ns.first + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% set ns.first = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    + TURN
    + "{% endfor %}"
    + ANSWER
)
IGNORES_SYSTEM = "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}" + ANSWER
DATED = WITH_DEFAULT.replace(SYSTEM, "Today is ' + strftime_now('%d %B %Y') + '.")


def choose(template: str, model_type: str = "llama") -> TemplateChoice:
    renderer = ChatRenderer(template, SPECIAL)
    try:
        return choose_template(
            lambda messages, variables: renderer.render(messages, True, variables),
            model_type,
            "strftime_now" in template,
        )
    finally:
        renderer.close()


THOUGHTS, OFF, BLANKS = "thoughts in earlier answers", "thinking switched off", "blanks around a question"


@pytest.mark.parametrize(
    ("template", "model_type", "name", "system", "differs"),
    [
        (CHATML, "qwen2", "Qwen2_5", "", ()),
        (CHATML, "qwen3", "Qwen3", "", ()),
        (CHATML, "llama", "SmolLM2", "", ()),
        (CHATML, "phi3", "Qwen2_5", "", ()),  # the names do not matter: it renders ChatML
        (WITH_DEFAULT, "qwen2", "Qwen2_5", SYSTEM, ()),
        (WITH_DEFAULT, "llama", "SmolLM2", SYSTEM, ()),
        (THINKING, "qwen3", "Qwen3", "", (THOUGHTS,)),
        (THINKING, "llama", "Qwen2_5", "", (THOUGHTS,)),  # SmolLM2 cannot switch thinking off
        ("{{ bos_token }}" + CHATML, "minicpm", "MiniCPM4", "", ()),
        ("{{ bos_token }}" + WITH_DEFAULT, "minicpm", "MiniCPM4", SYSTEM, ()),
        ("{{ bos_token }}" + THINKING, "llama", "MiniCPM5", "", ()),
        (GEMMA, "gemma3_text", "Gemma3", "", (BLANKS,)),
        (NO_SYSTEM, "qwen2", "Qwen2_5", "", None),
    ],
)
def test_the_template_that_renders_the_same(
    template: str, model_type: str, name: str, system: str, differs: tuple[str, ...] | None
) -> None:
    choice = choose(template, model_type)
    agreement = "equal with a system prompt" if system else "equal"
    assert (choice.tokenizer_type, choice.agreement, choice.system_prompt) == (name, agreement, system)
    assert name in TOKENIZER_TYPES
    assert differs is None or choice.differs == differs


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        (LLAMA2, "'<s>[INST] What is the capital of France? [/INST]'"),
        (LLAMA3, "<|start_header_id|>user"),
        (ZEPHYR, "<|user|>"),
        (PHI3, "<|end|>"),
        (MINICPM2, "<用户>What is"),
        (IGNORES_SYSTEM, "<|im_start|>user"),
        (CHATML.replace("<|im_end|>\n", "<|im_end|>"), "<|im_start|>user"),
        (CHATML.replace("+ m['content']", "+ m['content'] | trim + ' '"), "<|im_start|>user"),
        (WITH_DEFAULT.replace("!= 'system'", "!= 'none'"), "<|im_start|>system"),  # two system messages
        (DATED, "contains the date"),
        ("{{ raise_exception('no') }}", "rejects a plain conversation"),
    ],
)
def test_templates_that_axllm_does_not_have(template: str, shown: str) -> None:
    """Neither the architecture nor the form of the template leads to a guess."""
    for model_type in ("llama", "qwen2"):
        choice = choose(template, model_type)
        assert (choice.tokenizer_type, choice.agreement, choice.system_prompt) == (None, "not available", "")
        assert shown in choice.reason
        assert "main_prefill and the context hosts serve it with `axzoo tokenizer`" in choice.reason
        assert choice.to_dict()["reason"] == choice.reason


def test_smollm3_needs_its_system_prompt() -> None:
    """The default of the built-in template is not known, but the checkpoint's own is. The date is today's in both."""
    template = (
        "{% if messages[0]['role'] == 'system' %}{% set custom = messages[0]['content'] %}"
        "{% set turns = messages[1:] %}"
        "{% else %}{% set custom = 'Help.' %}{% set turns = messages %}{% endif %}"
        "{{ '<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: ' + "
        "strftime_now('%d %B %Y') + '\nReasoning Mode: /think\n\n## Custom Instructions\n\n' + custom + "
        "'\n\n<|im_end|>\n' }}{% for m in turns %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' + "
        "('' if '<think>' in m['content'] else '<think>\n\n</think>\n') + m['content'] + '<|im_end|>\n' }}"
        "{% else %}" + TURN + "{% endif %}{% endfor %}" + ANSWER
    )
    choice = choose(template, "smollm3")
    assert (choice.tokenizer_type, choice.system_prompt) == ("SmolLM3", "Help.")
    assert choice.agreement == "equal with a system prompt"


@pytest.mark.parametrize("host", HOST_TEMPLATES, ids=lambda host: host.name)
def test_a_template_that_renders_as_a_built_in_one_is_found(host: HostTemplate) -> None:
    """Each type is the choice for its own rendering, or another one of the same rendering and switches is."""
    choice = choose_template(
        lambda messages, variables: host.render(messages, bool(variables.get("enable_thinking", True))),
        next(iter(host.model_types), "other"),
    )
    if host.needs_system:
        assert choice.agreement == "not available"
        return
    assert (choice.tokenizer_type, choice.agreement, choice.differs) == (host.name, "equal", ())


def test_a_changed_character_is_a_difference() -> None:
    """Planted faults: every character of the rendering counts, in each kind of message."""

    def changed(messages: Sequence[Message], text: str, position: int) -> str:
        return text[:position] + "#" + text[position + 1 :]

    host = HOST_TEMPLATES[0]
    for position in range(0, 60, 7):

        def render(messages: Sequence[Message], variables: Mapping[str, object], at: int = position) -> str:
            return changed(messages, host.render(messages), at)

        assert choose_template(render, "qwen2").agreement == "not available", position


def test_a_template_that_fails_for_some_conversations() -> None:
    """A rejected system message is no difference, but a rejected conversation is."""

    def render(messages: Sequence[Message], variables: Mapping[str, object]) -> str:
        if len(messages) > 2:
            raise AxzooError("too long")
        return HOST_TEMPLATES[0].render(messages)

    assert choose_template(render, "qwen2").reason.startswith("the checkpoint's chat template rejects a plain")
