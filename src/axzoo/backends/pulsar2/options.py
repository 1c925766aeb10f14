"""A recipe as command line options of the compiler. This module is part of the store keys of compiled files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from axzoo.core.errors import AxzooError
from axzoo.weights.recipe import Recipe


@dataclass(frozen=True)
class Tool:
    """What a compiler says about itself: llm_build or llm_build2, its version, the options and the chips that it knows.
    `build` identifies its program exactly, or is empty; `chips` is empty if it does not list them."""

    name: str
    version: str
    build: str
    options: tuple[str, ...]
    chips: tuple[str, ...] = ()


def options_for(tool: Tool, recipe: Recipe, chip: str, is_post: bool, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """The tool's options for one slice, without paths. `is_post` builds the post layer; its decoder layer is thrown
    away, so it gets the shortest lengths.

    The two tools use the same words differently: llm_build's --prefill_len is the length of one chunk, llm_build2's the
    length of all chunks together. Raises AxzooError when the tool lacks an option that the recipe needs.
    """
    chunk, cache_len, total = recipe.prefill_len, recipe.kv_cache_len, recipe.max_prompt_len
    if is_post:
        chunk, cache_len, total = 0, 127, 0
    options = ["--chip", chip, "--hidden_state_type", recipe.hidden_state_type, "--parallel", "1", "--check_level", "0"]
    options += ["--weight_type", "s8" if is_post else recipe.weight_type]
    if tool.name == "llm_build":
        options += ["--prefill_len", str(chunk), "--kv_cache_len", str(cache_len)]
        if chunk:
            options += [word for past in recipe.last_kv_cache_len for word in ("--last_kv_cache_len", str(past))]
    else:
        options += ["--max_context", str(cache_len + 1), "--decode_step_size", "0", "--prefill_len", str(total)]
        options += ["--prefill_step_size", str(chunk)] if chunk else []
    if is_post:
        options += ["--post_weight_type", recipe.post_weight_type, "--post_topk", str(recipe.post_topk)]
        options += ["--ret_postnorm"] if recipe.ret_postnorm else []
    if tool.chips and chip not in tool.chips:
        raise AxzooError(f"{tool.name} {tool.version} does not know the chip {chip}, only {', '.join(tool.chips)}")
    needed = [word for word in (*options, *extra) if word.startswith("--")]
    if lacking := [word for word in needed if word.partition("=")[0] not in tool.options]:
        raise AxzooError(
            f"{tool.name} {tool.version} has no option {lacking[0]}: use a version that has it, or change the setting "
            f"that needs it"
        )
    return (*options, *extra)
