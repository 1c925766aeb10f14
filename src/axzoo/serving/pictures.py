"""Pictures in the messages of a request: read, decoded and encoded once, and placed in the prompt."""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from axzoo.runtime.image_encoder import EncodedImage, VisionModel
from axzoo.runtime.images import decode_picture
from axzoo.serving.chat_requests import ChatPrompt, Picture
from axzoo.serving.fields import Fields

_PREFIX = "data:"
_MAX_ENCODED = 16


def read_picture_part(part: Fields) -> Picture:
    """Read the content part {"type": "image_url", "image_url": {"url": "data:image/...;base64,..."}}.

    Raises AxzooError for other URLs: this server does not fetch pictures.
    """
    holder = part.child("image_url") if isinstance(part.peek().value("image_url"), dict) else None
    if holder is None:
        url = part.required(part.text("image_url"), "image_url")
    else:
        holder.text("detail")
        url = holder.required(holder.text("url"), "url")
    header, found, content = url.partition(",")
    if not header.startswith(_PREFIX) or not found or not header.endswith(";base64"):
        raise part.error("image_url", "must be a data: URL with base64, because this server does not fetch pictures")
    try:
        data = base64.b64decode(content, validate=True)
    except ValueError:
        raise part.error("image_url", "is not valid base64") from None
    return Picture(data, f"<picture {hashlib.sha256(data).hexdigest()}>")


@dataclass
class PictureEncoder:
    """Encodes the pictures of prompts, with `slices` as overview and slices. The last few are kept, because a
    conversation sends its pictures every time."""

    vision: VisionModel
    slices: bool = False

    def __post_init__(self) -> None:
        self._encoded: OrderedDict[str, EncodedImage] = OrderedDict()

    def encode(self, pictures: Sequence[Picture]) -> list[EncodedImage]:
        """Encode pictures. Raises AxzooError when one cannot be decoded."""
        return [self._image(number, picture) for number, picture in enumerate(pictures, 1)]

    def _image(self, number: int, picture: Picture) -> EncodedImage:
        image = self._encoded.pop(picture.mark, None)
        if image is None:
            encode = self.vision.encode_slices if self.slices else self.vision.encode
            image = encode(decode_picture(picture.content, f"picture {number}"))
        self._encoded[picture.mark] = image
        while len(self._encoded) > _MAX_ENCODED:
            self._encoded.popitem(last=False)
        return image


def with_placeholders(prompt: ChatPrompt, images: Sequence[EncodedImage]) -> ChatPrompt:
    """Replace the marks of the prompt's pictures by the tokens that their rows will replace."""
    placeholders = {picture.mark: image.placeholder for picture, image in zip(prompt.pictures, images, strict=True)}
    messages = []
    for message in prompt.messages:
        content = message["content"]
        for mark, placeholder in placeholders.items():
            content = content.replace(mark, placeholder)
        messages.append({**message, "content": content})
    return replace(prompt, messages=tuple(messages))
