"""The keys that chat and text completion requests share: how tokens are chosen, and where an answer ends."""

from __future__ import annotations

from dataclasses import dataclass, replace

from axzoo.runtime.post_config import PostConfig
from axzoo.runtime.sampling import Adjustments
from axzoo.serving.fields import Fields, Unsupported

_INT_MAX = (1 << 31) - 1
MAX_STOPS = 4
_MAX_STOP_CHARACTERS = 1024
_MAX_BIASES = 1024

_UNSUPPORTED: Unsupported = {
    "n": ([1], "only one answer per request is generated; omit n"),
    "best_of": ([1], "only one answer per request is generated; omit best_of"),
    "grammar": ([""], "answers cannot be constrained; omit it"),
    "guided_json": ([], "answers cannot be constrained; omit it"),
    "guided_regex": ([], "answers cannot be constrained; omit it"),
    "guided_choice": ([], "answers cannot be constrained; omit it"),
    "guided_grammar": ([], "answers cannot be constrained; omit it"),
    "json_schema": ([{}], "answers cannot be constrained; omit it"),
    "structured_outputs": ([{}], "answers cannot be constrained; omit it"),
}


@dataclass(frozen=True)
class GenerationSettings:
    """How an answer is generated. `stop` are texts that end it; without `token_limit`, the context limits it."""

    sampling: PostConfig
    adjustments: Adjustments
    seed: int | None
    stop: tuple[str, ...]
    token_limit: int | None

    @property
    def repeatable(self) -> bool:
        """Whether the same request must always get the same answer."""
        return self.seed is not None or not self.sampling.is_random


def read_generation(fields: Fields, default: PostConfig) -> GenerationSettings:
    """Read the settings of a request. Omitted ones come from `default`, the bundle's post_config.json.

    Raises AxzooError when a value is not valid, or asks for something that is not implemented.
    """
    fields.refuse(_UNSUPPORTED)
    top_k = fields.whole("top_k", -1, _INT_MAX)
    top_p = fields.number("top_p", 0, 1)
    if top_p == 0:
        raise fields.error("top_p", "must be above 0 and at most 1, not 0")
    return GenerationSettings(
        sampling=_sampling(fields, default, top_k, top_p),
        adjustments=Adjustments(
            top_k=top_k if top_k is not None and top_k > 0 and top_p is not None else None,
            min_p=fields.number("min_p", 0, 1) or 0.0,
            frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
            presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
            logit_bias=_logit_bias(fields),
        ),
        seed=fields.whole("seed", -(1 << 63), (1 << 64) - 1),
        stop=_stop(fields),
        token_limit=_token_limit(fields),
    )


def _sampling(fields: Fields, default: PostConfig, top_k: int | None, top_p: float | None) -> PostConfig:
    config = default
    temperature = fields.number("temperature", 0, 2)
    penalty = _repetition_penalty(fields)
    if top_p is not None:
        config = replace(config, enable_top_p_sampling=True, top_p=top_p)
    elif top_k is not None and top_k > 0:
        config = replace(config, enable_top_p_sampling=False, enable_top_k_sampling=True, top_k=top_k)
    elif top_k is not None:  # all tokens are candidates
        config = replace(config, enable_top_p_sampling=True, top_p=1.0)
    if temperature == 0:
        config = replace(
            config, enable_temperature=False, enable_top_p_sampling=False, enable_top_k_sampling=False,
            enable_repetition_penalty=False,
        )  # fmt: skip
    elif temperature is not None:
        config = replace(config, enable_temperature=True, temperature=temperature)
    if penalty is not None:
        config = replace(config, enable_repetition_penalty=penalty != 1, repetition_penalty=penalty)
    return config


def _repetition_penalty(fields: Fields) -> float | None:
    """Read `repetition_penalty`, or `repeat_penalty`, its name in other servers. fp32 can represent 1e-38."""
    first, second = (fields.number(name, 1e-38, 100) for name in ("repetition_penalty", "repeat_penalty"))
    return first if first is not None else second


def _token_limit(fields: Fields) -> int | None:
    """Read `max_completion_tokens`, or its older name `max_tokens`. -1 means no limit."""
    first, second = (fields.whole(name, -1, _INT_MAX) for name in ("max_completion_tokens", "max_tokens"))
    if 0 in (first, second):
        raise fields.error("max_tokens" if second == 0 else "max_completion_tokens", "must be 1 or more, or -1, not 0")
    limit = first if first is not None else second
    return None if limit == -1 else limit


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.value("stop")
    stops = [value] if isinstance(value, str) else fields.items("stop", MAX_STOPS) or []
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= _MAX_STOP_CHARACTERS:
            raise fields.error(
                "stop", f"must be a string, or a list of strings, of 1 to {_MAX_STOP_CHARACTERS} characters"
            )
    return tuple(stops)


def _logit_bias(fields: Fields) -> dict[int, float]:
    given = fields.value("logit_bias")
    if given in (None, [], {}):  # some clients send an empty list
        return {}
    if not isinstance(given, dict) or len(given) > _MAX_BIASES:
        raise fields.error("logit_bias", f"must be an object with at most {_MAX_BIASES} keys")
    bias = {}
    for token, value in given.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise fields.error("logit_bias", f"must have token ids as keys, not {token[:40]!r}")
        if type(value) not in (int, float) or not -100 <= value <= 100:
            raise fields.error("logit_bias", "must have numbers from -100 to 100 as values")
        bias[int(token)] = float(value)
    return bias
