"""The chat templates that are built into axllm, and which of them renders what the checkpoint's own template does.

axllm cannot use a checkpoint's template: config.json selects one of its own by `tokenizer_type`. The selection compares
rendered conversations, because models of one name use different templates, and one template has several names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from axzoo.core.errors import AxzooError
from axzoo.tokenizer.chat_template import NO_VARIABLES, Message

Render = Callable[[Sequence[Message], Mapping[str, object]], str]
"""(messages, variables of the template) -> the prompt. Raises AxzooError when the template rejects the messages."""
Agreement = Literal["equal", "equal with a system prompt", "not available"]

EQUAL: Agreement = "equal"
WITH_SYSTEM: Agreement = "equal with a system prompt"
NOT_AVAILABLE: Agreement = "not available"

OTHER_HOSTS = "main_prefill and the context hosts serve it with `axzoo tokenizer`"


@dataclass(frozen=True)
class HostTemplate:
    """What axllm renders for a `tokenizer_type`, ChatML unless stated; `{}` stands for the content of a message.

    `no_think` follows the start of an answer if thinking is switched off; None if the type has no such switch.
    `system_in_user` puts the system message before the first question. `drops_thoughts` removes the thoughts of answers
    before the last question, `adds_thoughts` puts empty ones before answers without. `needs_system` marks a type whose
    own default system prompt is not known. `model_types` are the architectures that the type is named after: of equal
    types, that one is selected.
    """

    name: str
    model_types: tuple[str, ...]
    system: str = "<|im_start|>system\n{}<|im_end|>\n"
    user: str = "<|im_start|>user\n{}<|im_end|>\n"
    answer: str = "<|im_start|>assistant\n{}<|im_end|>\n"
    generation: str = "<|im_start|>assistant\n"
    start: str = ""
    no_think: str | None = None
    system_in_user: bool = False
    drops_thoughts: bool = False
    adds_thoughts: bool = False
    needs_system: bool = False

    def render(self, messages: Sequence[Message], think: bool = True) -> str:
        """The prompt for a conversation, which ends with a question and may begin with a system message."""
        system = messages[0]["content"] if messages[0]["role"] == "system" else None
        turns = messages if system is None else messages[1:]
        pieces = [self.start]
        if system is not None and not self.system_in_user:
            pieces.append(_fill(self.system, system))
        for number, message in enumerate(turns):
            text = message["content"]
            if message["role"] == "assistant":
                pieces.append(_fill(self.answer, self._thoughts(text)))
            elif self.system_in_user and system is not None and number == 0:
                pieces.append(_fill(self.user, _fill(self.system, system) + text))
            else:
                pieces.append(_fill(self.user, text))
        return "".join([*pieces, self.generation, "" if think else self.no_think or ""])

    def _thoughts(self, answer: str) -> str:
        if self.drops_thoughts:
            return re.sub(r"^<think>.*?</think>\s*", "", answer, count=1, flags=re.DOTALL)
        if self.adds_thoughts and not answer.startswith("<think>"):
            return f"<think>\n\n</think>\n{answer}"
        return answer


def _fill(form: str, content: str) -> str:
    return form.replace("{}", content, 1)


_NO_THOUGHTS = "<think>\n\n</think>\n\n"
_DATE = re.compile(r"(?<=Today Date: )\d{1,2} [A-Z][a-z]+ \d{4}")

HOST_TEMPLATES = (
    HostTemplate("Qwen2_5", ("qwen2",), no_think=_NO_THOUGHTS),
    HostTemplate("Qwen3", ("qwen3",), no_think=_NO_THOUGHTS),
    HostTemplate("SmolLM2", ("llama",)),
    HostTemplate(
        "SmolLM3",
        ("smollm3",),
        system=(
            "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 1 January 2026\n"
            "Reasoning Mode: /think\n\n## Custom Instructions\n\n{}\n\n<|im_end|>\n"
        ),
        adds_thoughts=True,
        needs_system=True,
    ),
    HostTemplate("MiniCPM4", ("minicpm",), start="<s>"),
    HostTemplate("MiniCPM5", ("llama",), start="<s>", no_think=_NO_THOUGHTS, drops_thoughts=True),
    HostTemplate(
        "Gemma3",
        ("gemma3_text", "gemma3"),
        system="{}\n\n",
        user="<start_of_turn>user\n{}<end_of_turn>\n",
        answer="<start_of_turn>model\n{}<end_of_turn>\n",
        generation="<start_of_turn>model\n",
        start="<bos>",
        system_in_user=True,
    ),
    HostTemplate(
        "GLM5",
        (),
        system="<|system|>{}",
        user="<|user|>{}",
        answer="<|assistant|></think>{}",
        generation="<|assistant|><think>",
        start="[gMASK]<sop>",
    ),
)
"""The templates for text whose whole rendering is known. axllm has more, for models that axzoo does not build."""


def _conversation(*contents: str, system: str | None = None) -> list[Message]:
    turns = [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(contents)]
    return [*([] if system is None else [{"role": "system", "content": system}]), *turns]


_QUESTIONS = {
    "one question": _conversation("What is the capital of France?"),
    "several turns": _conversation("What is 1+1?", "2", "And 2+2?", "4", "Thank you.\nAnd 3+3?"),
    "other scripts": _conversation("法国的首都是哪里?", "巴黎。", "Ça va? \N{WAVING HAND SIGN}"),
}
_MARK = "Answer in one sentence."
_BLANKS = _conversation("  What is the capital of France?  \n")
_THOUGHTS = _conversation("What is 1+1?", "<think>\nOne and one.\n</think>\n\n2", "And 2+2?")


@dataclass(frozen=True)
class TemplateChoice:
    """The built-in template that agrees with the checkpoint's own, and how far.

    `tokenizer_type` is None if there is none; `reason` says why. `system_prompt` is the default of the checkpoint's
    template if the host must be given it, else empty. `writes_bos`: the template contains the first token as text.
    `differs` names the kinds of conversations that are rendered differently nevertheless.
    """

    agreement: Agreement
    tokenizer_type: str | None = None
    system_prompt: str = ""
    differs: tuple[str, ...] = ()
    reason: str = ""
    writes_bos: bool = False

    def to_dict(self) -> dict[str, object]:
        """The entry in the manifest."""
        entry: dict[str, object] = {"agreement": self.agreement, "tokenizer_type": self.tokenizer_type}
        return {**entry, **({"reason": self.reason} if self.reason else {"differs": list(self.differs)})}


def no_template(reason: str) -> TemplateChoice:
    """The choice for a checkpoint that no built-in template suits."""
    return TemplateChoice(NOT_AVAILABLE, reason=f"{reason}: {OTHER_HOSTS}")


def choose_template(render: Render, model_type: str, dated: bool = False) -> TemplateChoice:
    """Choose the built-in template that renders conversations as `render`, the checkpoint's own template, does.

    Of several, the one with the fewest other differences, then the one that is named after `model_type`. `dated` says
    that the checkpoint's template writes the date, which cannot be part of a fixed system prompt.
    """
    own = {name: _try(render, messages) for name, messages in _QUESTIONS.items()}
    if any(text is None for text in own.values()):
        return no_template("the checkpoint's chat template rejects a plain conversation")
    default = _default_system(render)
    if dated and default and re.search(r"\b20\d\d\b", default):
        return no_template("the checkpoint's default system prompt contains the date, and axllm's cannot")
    found = [(host, agreement) for host in HOST_TEMPLATES if (agreement := _agreement(host, render, default))]
    if not found:
        return no_template(f"axllm has no built-in chat template that writes {own['one question']!r:.200}")
    differences = {host.name: _differences(host, render) for host, _ in found}
    host, agreement = min(
        found,
        key=lambda choice: (
            choice[1] != EQUAL,
            len(differences[choice[0].name]),
            model_type not in choice[0].model_types,
        ),
    )
    system = default or "" if agreement == WITH_SYSTEM else ""
    return TemplateChoice(agreement, host.name, system, differences[host.name], writes_bos=bool(host.start))


def template_fault(name: str, render: Render, system_prompt: object) -> str | None:
    """How axllm's template `name`, given the system prompt of config.json, disagrees with the checkpoint's own, and
    what would agree; None if it agrees, or if what it renders is not known."""
    host = next((host for host in HOST_TEMPLATES if host.name == name), None)
    if host is None or any(_try(render, messages) is None for messages in _QUESTIONS.values()):
        return None
    default = _default_system(render)
    agreement = _agreement(host, render, default)
    if agreement == WITH_SYSTEM and system_prompt != default:
        return f"the prompts are the model's own only with its default system_prompt: write {default!r:.200}"
    if agreement:
        return None
    better = choose_template(render, "").tokenizer_type
    remedy = f"write {better}" if better else OTHER_HOSTS
    return f"tokenizer_type {name} writes other prompts than the chat template in tokenizer/: {remedy}"


def _agreement(host: HostTemplate, render: Render, default: str | None) -> Agreement | None:
    """How far a built-in template agrees with the checkpoint's own; None if it does not."""
    plain = list(_QUESTIONS.values())
    for messages in ([{"role": "system", "content": _MARK}, *turns] for turns in plain):
        if (own := _try(render, messages)) is not None and not _same(own, host.render(messages)):
            return None
    if not host.needs_system and all(_same(_try(render, turns), host.render(turns)) for turns in plain):
        return EQUAL
    if default:
        for turns in plain:
            given = [{"role": "system", "content": default}, *turns]
            own = _try(render, turns)
            if not _same(own, host.render(given)) or not _same(own, _try(render, given)):
                return None
        return WITH_SYSTEM
    return None


def _default_system(render: Render) -> str | None:
    """The system message that the template adds to a conversation without one; None if it adds none.

    It stands where the template writes a given system message.
    """
    turns = _QUESTIONS["one question"]
    with_mark = _try(render, [{"role": "system", "content": _MARK}, *turns])
    without = _try(render, turns)
    if with_mark is None or without is None or with_mark.count(_MARK) != 1:
        return None
    before, after = with_mark.split(_MARK)
    if len(without) < len(before) + len(after) or not without.startswith(before) or not without.endswith(after):
        return None
    return without[len(before) : len(without) - len(after)]


def _differences(host: HostTemplate, render: Render) -> tuple[str, ...]:
    """The kinds of less common conversations that the two templates render differently."""
    question, other = _QUESTIONS["one question"], {"enable_thinking": False}
    mark = {"role": "system", "content": _MARK}
    without_thinking = _try(render, [mark, *question], other)
    switched = without_thinking != _try(render, [mark, *question])
    kinds = {
        "blanks around a question": _same(_try(render, [mark, *_BLANKS]), host.render([mark, *_BLANKS])),
        "thoughts in earlier answers": _same(_try(render, [mark, *_THOUGHTS]), host.render([mark, *_THOUGHTS])),
        "thinking switched off": not switched
        or (host.no_think is not None and _same(without_thinking, host.render([mark, *question], think=False))),
    }
    return tuple(kind for kind, equal in kinds.items() if not equal)


def _try(render: Render, messages: Sequence[Message], variables: Mapping[str, object] = NO_VARIABLES) -> str | None:
    try:
        return render(messages, variables)
    except AxzooError:
        return None


def _same(own: str | None, other: str | None) -> bool:
    """Whether two prompts are equal but for today's date, which both programs write."""
    return own is not None and other is not None and _DATE.sub("", own) == _DATE.sub("", other)
