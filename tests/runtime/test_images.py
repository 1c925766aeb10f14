"""Reading picture files: every kind becomes RGB, hostile ones are refused."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from axzoo.core.errors import AxzooError
from axzoo.runtime.images import MAX_FILE_BYTES, decode_picture, read_picture, resized

COLORS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_formats(kind: str, options: dict[str, object]) -> None:
    np.testing.assert_array_equal(decode_picture(_encoded(Image.fromarray(COLORS), kind, **options)), COLORS)


def test_jpeg_is_close() -> None:
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None, None] * 3, (64, 64, 3))
    found = decode_picture(_encoded(Image.fromarray(smooth), "JPEG", quality=95))
    assert np.abs(found.astype(int) - smooth).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    turned = {
        1: COLORS, 2: COLORS[:, ::-1], 3: COLORS[::-1, ::-1], 4: COLORS[::-1], 5: COLORS.transpose(1, 0, 2),
        6: np.rot90(COLORS), 7: COLORS[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(COLORS, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = _encoded(Image.fromarray(np.ascontiguousarray(turned)), "PNG", exif=exif.tobytes())
    np.testing.assert_array_equal(decode_picture(content), COLORS)


def _modes() -> dict[str, tuple[Image.Image, NDArray[np.uint8]]]:
    grey = COLORS[:, :, 0]
    as_rgb = np.repeat(grey[:, :, None], 3, 2)
    half = np.dstack([COLORS, np.full(grey.shape, 0, np.uint8)])
    half[0, 0, 3] = 255
    on_white = np.full_like(COLORS, 255)
    on_white[0, 0] = COLORS[0, 0]
    wide = grey.astype(np.uint16) * 257
    return {
        "grey": (Image.fromarray(grey), as_rgb),
        "transparent": (Image.fromarray(half), on_white),
        "16 bits": (Image.fromarray(wide), as_rgb),
        "black and white": (
            Image.fromarray(grey > 100),
            np.repeat(np.where(grey > 100, 255, 0).astype(np.uint8)[:, :, None], 3, 2),
        ),
        "palette": (Image.fromarray(as_rgb).quantize(256, dither=Image.Dither.NONE), as_rgb),
    }


@pytest.mark.parametrize("name", list(_modes()))
def test_modes(name: str) -> None:
    picture, want = _modes()[name]
    np.testing.assert_array_equal(decode_picture(_encoded(picture, "PNG")), want)


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more pixels than it has."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return len(content).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


HOSTILE = {
    "empty": (b"", "is not a picture: use one of JPEG"),
    "text": (b"hello", "is not a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
    "cut off": (_encoded(Image.fromarray(COLORS), "PNG")[:-40], "cannot be decoded"),
    "cut off jpeg": (_encoded(Image.fromarray(np.tile(COLORS, (9, 9, 1))), "JPEG")[:800], "cannot be decoded"),
    "fewer pixels than promised": (_bomb(3000, 3000), "cannot be decoded"),
    "too many pixels": (_bomb(9000, 9000), "81000000 pixels|9000 x 9000 pixels|cannot be decoded"),
    "a bomb": (_bomb(60000, 60000), "cannot be decoded|60000 x 60000"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(AxzooError, match=f"^the picture .*({message})"):
        decode_picture(content)


def test_files(tmp_path: Path) -> None:
    with pytest.raises(AxzooError, match="is not a file"):
        read_picture(tmp_path)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(AxzooError, match="a picture may have 64"):
        read_picture(large)


def _bilinear(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Half-pixel centers, one sample at a time."""
    result = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * len(pixels) / height - 0.5, 0), len(pixels) - 1)
            x = min(max((column + 0.5) * pixels.shape[1] / width - 0.5, 0), pixels.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, len(pixels) - 1), min(left + 1, pixels.shape[1] - 1)
            upper = pixels[top, left] * (1 - x + left) + pixels[top, right] * (x - left)
            lower = pixels[bottom, left] * (1 - x + left) + pixels[bottom, right] * (x - left)
            result[row, column] = upper * (1 - y + top) + lower * (y - top)
    return result


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (5, 7), (20, 30), (1, 1), (3, 12)])
def test_resizing_is_bilinear_without_antialiasing(size: tuple[int, int]) -> None:
    found = resized(COLORS, *size)
    assert found.dtype == np.uint8
    assert np.abs(found - _bilinear(COLORS, *size)).max() <= 0.51


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (9, 1, 3)])
def test_resizing_a_line(shape: tuple[int, int, int]) -> None:
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.abs(resized(pixels, 14, 14) - _bilinear(pixels, 14, 14)).max() <= 0.51
