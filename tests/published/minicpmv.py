"""The vision half of MiniCPM-V 2.0 as its published files define it: a timm ViT (SigLIP) without its last block, and
resampler.py, written with torch's modules."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Attention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, size = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, size))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.GELU()(self.fc1(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, size: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(size, eps=1e-6), _Attention(size, heads)
        self.norm2, self.mlp = nn.LayerNorm(size, eps=1e-6), _Mlp(size, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Tower(nn.Module):
    """timm's VisionTransformer with dynamic_img_size, without class token and pooling."""

    def __init__(self, size: int, inner: int, heads: int, blocks: int, patch: int, grid: int) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size, patch, patch)})
        self.pos_embed = nn.Parameter(torch.randn(1, grid * grid, size) * 0.5)
        self.blocks = nn.ModuleList(_Block(size, heads, inner) for _ in range(blocks))
        self.norm = nn.LayerNorm(size, eps=1e-6)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels)
        table = self.pos_embed.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        table = F.interpolate(table, size=x.shape[-2:], mode="bicubic", antialias=True)
        x = (x + table).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]


def sincos(size: int, grid: tuple[int, int]) -> Tensor:
    """get_2d_sincos_pos_embed of resampler.py: meshgrid with the columns first."""
    columns, rows = np.meshgrid(np.arange(grid[1], dtype=np.float32), np.arange(grid[0], dtype=np.float32))
    halves = []
    for positions in (columns, rows):
        omega = 1.0 / 10000 ** (np.arange(size // 4, dtype=np.float32) / (size / 4.0))
        angles = np.einsum("m,d->md", positions.reshape(-1), omega)
        halves.append(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
    return torch.from_numpy(np.concatenate(halves, axis=1)).float()


class Resampler(nn.Module):
    """Learned queries attend once to the tower's output."""

    def __init__(self, queries: int, size: int, heads: int, width: int) -> None:
        super().__init__()
        side = math.isqrt(queries)
        self.pos_embed = nn.Parameter(sincos(size, (side, side)))
        self.query = nn.Parameter(torch.randn(queries, size) * 0.5)
        self.kv_proj = nn.Linear(width, size, bias=False)
        self.attn = nn.MultiheadAttention(size, heads)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(size, eps=1e-6) for _ in range(3))
        self.proj = nn.Parameter(size**-0.5 * torch.randn(size, size))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = self.ln_kv(self.kv_proj(x)).permute(1, 0, 2)
        keys = x + sincos(x.shape[-1], grid)[:, None]
        query = (self.ln_q(self.query) + self.pos_embed)[:, None]
        out = self.attn(query, keys, x)[0].permute(1, 0, 2)
        return self.ln_post(out) @ self.proj  # type: ignore[no-any-return]


class Vision(nn.Module):
    """The tower and its resampler, with the names of the checkpoint's tensors."""

    def __init__(self, tower: Tower, resampler: Resampler) -> None:
        super().__init__()
        self.vpm, self.resampler = tower, resampler

    def tensors(self) -> Mapping[str, Tensor]:
        return {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}

    def tower_rows(self, image: Tensor) -> Tensor:
        """uint8 [height, width, 3] -> [patches, width of the tower]."""
        pixels = (image.permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5
        with torch.inference_mode():
            return self.vpm(pixels)[0]  # type: ignore[no-any-return]

    def rows(self, image: Tensor) -> Tensor:
        """uint8 [height, width, 3] -> [queries, size], the embedding rows that replace the image."""
        grid = image.shape[0] // self.vpm.patch, image.shape[1] // self.vpm.patch
        with torch.inference_mode():
            return self.resampler(self.tower_rows(image)[None], grid)[0]  # type: ignore[no-any-return]
