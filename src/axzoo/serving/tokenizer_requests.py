"""The bodies of POST /encode, /decode and /reset of the tokenizer server.

Optional keys may be null, which means the same as their absence. Unknown keys are ignored, and listed in `ignored`.
"""

from __future__ import annotations

from dataclasses import dataclass

from axzoo.serving.fields import Fields, read_object

MAX_TOKEN_IDS = 1 << 16


@dataclass(frozen=True)
class EncodeRequest:
    """POST /encode. With `uid`, `text` is the user's next question, and `last_reply` the answer to the previous one."""

    text: str
    uid: str | None
    last_reply: str | None
    img_prompt: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class DecodeRequest:
    """POST /decode. With `uid`, the tokens continue the current answer to that user."""

    token_ids: list[int]
    uid: str | None
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class ResetRequest:
    """POST /reset. Starts a new conversation for that user."""

    uid: str
    system_prompt: str | None
    ignored: tuple[str, ...] = ()


def read_encode(body: bytes) -> EncodeRequest:
    """Read the body. Raises AxzooError when it is not valid, as the other functions do."""
    fields = read_object(body)
    text, uid, reply = fields.required(fields.text("text"), "text"), fields.text("uid"), fields.text("last_reply")
    return EncodeRequest(text, uid, reply, bool(fields.flag("img_prompt")), _ignored(fields))


def read_decode(body: bytes) -> DecodeRequest:
    fields = read_object(body)
    ids = fields.required(fields.items("token_ids", MAX_TOKEN_IDS), "token_ids")
    for index, token in enumerate(ids):
        if type(token) is not int or token < 0:
            raise fields.error(f"token_ids.{index}", "must be a whole number of 0 or more")
    return DecodeRequest(ids, fields.text("uid"), _ignored(fields))


def read_reset(body: bytes) -> ResetRequest:
    fields = read_object(body)
    uid = fields.required(fields.text("uid"), "uid")
    return ResetRequest(uid, fields.text("system_prompt"), _ignored(fields))


def _ignored(fields: Fields) -> tuple[str, ...]:
    return tuple(dict.fromkeys(fields.ignored()))
