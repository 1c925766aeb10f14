"""The host backend: standard ONNX in the board's container, for the CPU of any computer."""

from __future__ import annotations
