"""Models that transformers does not have, written a second time from their published definitions, in fp32.

Each module has `config`, a small config.json with the published keys; `shapes`, its tensors by their published names;
and `logits`, the whole forward pass. Nothing here is shared with axzoo: that is the point of it.
"""
