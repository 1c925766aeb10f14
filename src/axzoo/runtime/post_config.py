"""post_config.json: how the next token is chosen, under the keys of the board's host."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostConfig:
    """The keys of post_config.json, with the values the board's host ships.

    Raises AxzooError when a value has the wrong type or lies out of range.
    """

    enable_temperature: bool = True
    temperature: float = 0.9
    enable_repetition_penalty: bool = False
    repetition_penalty: float = 1.2
    penalty_window: int = 20
    enable_top_p_sampling: bool = False
    top_p: float = 0.8
    enable_top_k_sampling: bool = True
    top_k: int = 10

    @property
    def draws(self) -> bool:
        """Whether chance has a say in the next token."""
        return self.enable_top_p_sampling or (self.enable_top_k_sampling and self.top_k > 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise AxzooError(f"{field.name} must be of type {kind.__name__}, not {value!r}")
        for name, valid, wanted in (
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("penalty_window", self.penalty_window >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 1, "1 or more"),
        ):
            if not valid:
                raise AxzooError(f"{name} must be {wanted}, not {getattr(self, name)}")


GREEDY = PostConfig(enable_temperature=False, enable_top_k_sampling=False)
"""Always the most probable token."""


def read_post_config(path: Path) -> PostConfig:
    """Reads post_config.json; keys it leaves out keep the shipped values. Without the file: a warning, and greedy.

    Raises AxzooError when it is no JSON object, has an unknown key, or a value is wrong.
    """
    if not path.is_file():
        logger.warning(f"{path} is missing: the most probable token is taken, always")
        return GREEDY
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    known = [field.name for field in fields(PostConfig)]
    if unknown := sorted(data.keys() - set(known)):
        raise AxzooError(f"{path} has the unknown key {unknown[0]!r}: known are {', '.join(known)}")
    try:
        return PostConfig(**data)
    except AxzooError as error:
        raise AxzooError(f"{path}: {error}") from error
