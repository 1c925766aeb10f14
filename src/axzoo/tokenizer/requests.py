"""The bodies of the tokenizer server's requests. Keys it does not know (num_img, imgsz) are passed over, as clients of
vision models send them to every server."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKEN_IDS = 1 << 16


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Encode(_Body):
    """POST /encode. With `uid`: the next question of that user's conversation, after `last_reply`."""

    text: str
    uid: str | None = None
    last_reply: str | None = None
    img_prompt: bool = False


class Decode(_Body):
    """POST /decode. With `uid`: the next tokens of the answer to that user."""

    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MAX_TOKEN_IDS)]
    uid: str | None = None


class Reset(_Body):
    """POST /reset: that user's conversation begins anew."""

    uid: str
    system_prompt: str | None = None
