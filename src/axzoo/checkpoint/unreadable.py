"""Why a folder contains no weights that axzoo can build, and what to do."""

from __future__ import annotations

import re

from axzoo.checkpoint.listing import ADAPTER, Listing
from axzoo.core.errors import AxzooError

_VARIANTS = (
    re.compile(r"(?P<plain>model\.safetensors\.index|pytorch_model\.bin\.index)\.(?P<variant>[^.]+)(?P<end>\.json)"),
    re.compile(r"(?P<plain>model|pytorch_model)\.(?P<variant>[^.]+)(?P<end>\.safetensors|\.bin)"),
)
"""Files for transformers' argument `variant`. The index of a variant's shards comes first, because it names them."""
_META = re.compile(r"consolidated(\.\d+)?\.(pth|safetensors)")
_OTHER = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".pth": "PyTorch",
    ".pt": "PyTorch",
    ".ckpt": "a training checkpoint",
    ".npz": "NumPy",
    ".axmodel": "a bundle of axzoo or pulsar2",
}


def no_weights(listing: Listing) -> AxzooError:
    """The error for a folder without readable weights. It names what is there instead."""
    what = f"{listing.shown} contains no weights that axzoo can read"
    names = sorted(listing.names)
    for name in names:
        if name.startswith("adapter_model."):
            return adapter_refusal(listing, alone=True)
        if _META.fullmatch(name):
            return AxzooError(
                f"{what}: {name} is Meta's or Mistral's own format: use the model's Hugging Face version, or convert "
                f"it with transformers' convert_*_weights_to_hf.py"
            )
    for pattern in _VARIANTS:
        for found in filter(None, map(pattern.fullmatch, names)):
            return AxzooError(
                f"{what}: {found[0]} is the variant {found['variant']}: to build it, give a folder in which it is "
                f"called {found['plain']}{found['end']}"
            )
    single = [name for name in names if name.endswith(".safetensors")]
    if len(single) == 1:
        return AxzooError(
            f"{what}: if {single[0]} contains the whole model, give a folder in which it is called model.safetensors"
        )
    expected = "neither model.safetensors nor pytorch_model.bin, nor an index of either, nor a GGUF file"
    nested = listing.nested()
    if nested:
        return AxzooError(f"{what}: {expected}. Its folder {nested[0]} contains a config.json: give the path of that")
    if single:
        return AxzooError(f"{what}: {expected}. It contains {len(single)} other *.safetensors files, like {single[0]}")
    others = [f"{name} ({label})" for name in names for end, label in _OTHER.items() if name.endswith(end)]
    list_of_others = f". It contains {', '.join(others[:3])}" if others else ""
    return AxzooError(f"{what}: {expected}{list_of_others}")


def adapter_refusal(listing: Listing, *, alone: bool) -> AxzooError:
    """The error for an adapter (LoRA). With one beside a model, transformers and peft load both; axzoo cannot."""
    merge = "merge it into the model with peft's merge_and_unload(), and give the merged folder"
    if not alone:
        return AxzooError(
            f"{listing.shown} contains a model and an adapter ({ADAPTER}), which transformers applies to it: {merge}; "
            f"or remove {ADAPTER} to build the model without it"
        )
    try:
        base = listing.read(ADAPTER).get("base_model_name_or_path") if ADAPTER in listing.names else None
    except (AxzooError, AttributeError):
        base = None
    of = f" of {base!r:.120}" if isinstance(base, str) and base.isprintable() else ""
    return AxzooError(f"{listing.shown} contains an adapter{of}, not a model: {merge}")
