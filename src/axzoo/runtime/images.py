"""Reads picture files into RGB arrays, and resizes them as the board's host program does."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from axzoo.core.errors import AxzooError
from axzoo.core.files import read_bytes

Pixels = NDArray[np.uint8]
"""An RGB image [height, width, 3]."""

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 64 << 20
"""A larger picture is refused before it is decoded."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_BACKGROUND = (255, 255, 255)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_picture(path: Path) -> Pixels:
    """Read a picture file. Raises AxzooError when it is missing, too large, or not a picture."""
    if not path.is_file():
        raise AxzooError(f"{path} is not a file: pass a picture")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise AxzooError(f"{path} has {path.stat().st_size >> 20} MB, and a picture may have {MAX_FILE_BYTES >> 20}")
    return decode_picture(read_bytes(path, MAX_FILE_BYTES), str(path))


def decode_picture(content: bytes, name: str = "the picture") -> Pixels:
    """Decode a picture: turned upright as its EXIF orientation says, on white where it is transparent.

    Of an animation, the first frame. 16-bit samples are reduced to 8 bits. Raises AxzooError, naming `name`, when it is
    not a complete picture of a known format, or has more than MAX_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(content), formats=_FORMATS)
            if opened.width * opened.height > MAX_PIXELS:
                raise AxzooError(
                    f"{name} has {opened.width} x {opened.height} pixels, and a picture may have {MAX_PIXELS}: "
                    "reduce it"
                )
            return np.asarray(_rgb(ImageOps.exif_transpose(opened)))
    except UnidentifiedImageError:
        raise AxzooError(f"{name} is not a picture: use one of {', '.join(_FORMATS)}") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as e:
        raise AxzooError(f"{name} cannot be decoded ({e!s:.120}): save it again as PNG or JPEG") from None


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits of grey
        samples = np.asarray(picture).astype(np.float64)
        largest = 65535 if samples.max(initial=0) > 255 else 255
        picture = Image.fromarray(np.clip(np.round(samples * (255 / largest)), 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        colors = picture.convert("RGBA")
        canvas = Image.new("RGBA", colors.size, (*_BACKGROUND, 255))
        picture = Image.alpha_composite(canvas, colors)
    return picture.convert("RGB")


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bilinear interpolation without antialiasing, like OpenCV's INTER_LINEAR: the board's host program uses that."""
    rows, down = _neighbours(len(pixels), height)
    columns, right = _neighbours(pixels.shape[1], width)
    top, bottom = (pixels[rows + i].astype(np.float32) for i in (0, 1)) if len(pixels) > 1 else (pixels[rows],) * 2
    lines = top + (bottom - top) * down[:, None, None]
    after = columns + (1 if pixels.shape[1] > 1 else 0)
    values = lines[:, columns] + (lines[:, after] - lines[:, columns]) * right[None, :, None]
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of `new` samples, the sample before it among `old`, and the share of the sample after it."""
    positions = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = np.minimum(positions.astype(np.int64), max(old - 2, 0))
    return first, (positions - first).astype(np.float32)


def resampled(pixels: Pixels, height: int, width: int) -> Pixels:
    """Bicubic interpolation with antialiasing, by Pillow, as the original model resizes slices."""
    picture = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture)
