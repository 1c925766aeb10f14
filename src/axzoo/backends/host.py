"""The embedded backend: standard ONNX in the board's container, for the CPU of any host."""

from axzoo.compile.layer import compile_layer
from axzoo.compile.post import compile_post

__all__ = ["compile_layer", "compile_post"]
