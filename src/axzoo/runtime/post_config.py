"""The sampling settings of post_config.json, with the same keys as on the board."""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass, fields
from pathlib import Path

from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, read_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PostConfig:
    """The keys of post_config.json. The defaults are those that the board's host program ships.

    Raises AxzooError when a value has the wrong type or is out of range.
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
    def is_random(self) -> bool:
        """Whether the next token is drawn at random."""
        return self.enable_top_p_sampling or (self.enable_top_k_sampling and self.top_k > 1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise AxzooError(f"{field.name} must be of type {kind.__name__}, not {value!r}")
        for name, valid, requirement in (
            ("temperature", self.temperature > 0, "above 0"),
            ("temperature", _fits_fp32(self.temperature), "above 0 and finite in fp32"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("repetition_penalty", _fits_fp32(self.repetition_penalty), "above 0 and finite in fp32"),
            ("penalty_window", 0 <= self.penalty_window < _INT_LIMIT, "0 or more and below 2**31"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", 1 <= self.top_k < _INT_LIMIT, "1 or more and below 2**31"),
        ):
            if not valid:
                raise AxzooError(f"{name} must be {requirement}, not {short_number(getattr(self, name))}")


_INT_LIMIT = 1 << 31  # the board's host program reads these keys as 32-bit integers


def _fits_fp32(value: float) -> bool:
    """Whether a positive number is still positive and finite in fp32, in which logits are computed."""
    try:
        (narrow,) = struct.unpack("<f", struct.pack("<f", value))
    except (OverflowError, struct.error):
        return False
    return bool(0 < narrow < math.inf)


def short_number(value: float) -> str:
    """Return a number for a message. An integer with very many digits is shortened."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number with more than 19 digits"
    return repr(value)


GREEDY = PostConfig(enable_temperature=False, enable_top_k_sampling=False)
"""Always selects the most probable token."""


def read_post_config(path: Path) -> PostConfig:
    """Read post_config.json. Omitted keys keep their defaults. If the file is missing, log a warning and return GREEDY.

    Raises AxzooError when the file is not a JSON object, has an unknown key, or a value is invalid.
    """
    if not has_file(path):
        logger.warning(f"{path} is missing: using greedy decoding")
        return GREEDY
    data = read_json(path)
    if not isinstance(data, dict):
        raise AxzooError(f"{path} must hold a JSON object")
    known = [field.name for field in fields(PostConfig)]
    if unknown := sorted(data.keys() - set(known)):
        raise AxzooError(f"{path} has the unknown key {unknown[0]!r}: the known keys are {', '.join(known)}")
    try:
        return PostConfig(**data)
    except AxzooError as error:
        raise AxzooError(f"{path}: {error}") from error
