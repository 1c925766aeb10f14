"""The files of the vendor's compiler in a folder, against the checkpoint that they should hold.

The folder can be a bundle, or any folder with the compiler's file names; it needs no manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.host.container import METADATA_KEY
from axzoo.backends.host.outline import read_outline
from axzoo.backends.pulsar2.row_blocks import ROWS
from axzoo.backends.pulsar2.vendor_file import read_vendor_file
from axzoo.backends.pulsar2.weight_proof import SAMPLE, WeightProof, layers_in, prove_tensors
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gptq import gptq_config
from axzoo.checkpoint.tensors import row_blocks
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.fetch.sources import RECEIPT, checkpoint_folder
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family
from axzoo.model.spec import TensorRef
from axzoo.parts.kind import RowReader
from axzoo.parts.tensor_names import model_names

_LAYER = re.compile(r"(?P<stem>.+)_l(?P<index>\d{1,4})(?P<tail>_together)?\.axmodel")
_POST = re.compile(r".+_post\.axmodel")


class CheckpointParts:
    """The parts of a checkpoint, which need not be locked: a folder with config.json, or with the receipt of a fetch.

    Only the sizes of config.json are read: keys that axzoo does not support do not matter here.
    """

    def __init__(self, folder: Path) -> None:
        receipt = folder / RECEIPT
        self.folder = checkpoint_folder(receipt) if receipt.is_file() else folder
        config = read_json(self.folder / "config.json")
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise AxzooError(f"{self.folder / 'config.json'} is not the config.json of a model: it has no model_type")
        self._family = load_family(config["model_type"])
        self.spec = self._family.decoder_spec(ConfigView(config, self.folder / "config.json"))
        if gptq_config(self.folder) is not None:
            raise AxzooError(
                f"{self.folder} has GPTQ codes with scales per group, and no published file shows how the compiler "
                f"stores them: compare with a checkpoint that is not quantized"
            )
        self._checkpoint = open_checkpoint(self.folder)

    @cached_property
    def _names(self) -> dict[str, str]:
        needed = [ref.name for layer in range(self.spec.num_hidden_layers) for ref in self.layer(layer).values()]
        return model_names(self._checkpoint.tensors, needed, self._family.embed_tensor(self.spec).name)

    def layer(self, index: int) -> Mapping[str, TensorRef]:
        return self._family.layer_tensors(self.spec, index)

    def post(self) -> Mapping[str, TensorRef]:
        return self._family.post_tensors(self.spec)

    def shapes(self, refs: Mapping[str, TensorRef]) -> dict[str, tuple[int, ...]]:
        """The shapes of the referenced rows. Raises AxzooError when a tensor is missing or has another shape."""
        return {role: (stop - start, *ref.shape[1:]) for role, ref in refs.items() for start, stop in [self._rows(ref)]}

    def _rows(self, ref: TensorRef) -> tuple[int, int]:
        info = self._checkpoint.tensors.get(self._names.get(ref.name, ref.name))
        if info is None or info.shape != ref.shape:
            found = "has none" if info is None else f"has one of shape {list(info.shape)}"
            raise AxzooError(f"{self.folder} {found}: its config.json requires {ref.name} of shape {list(ref.shape)}")
        return ref.rows or (0, ref.shape[0])

    def reader(self, refs: Mapping[str, TensorRef]) -> RowReader:
        return lambda role: row_blocks(
            self._checkpoint, self._names.get(refs[role].name, refs[role].name), *self._rows(refs[role])
        )

    @cached_property
    def samples(self) -> dict[int, dict[str, NDArray[np.float32]]]:
        """The first rows of the matrices of each layer."""
        return {
            index: {role: self._first(ref) for role, ref in self.layer(index).items() if len(ref.shape) == 2}
            for index in range(self.spec.num_hidden_layers)
        }

    def _first(self, ref: TensorRef) -> NDArray[np.float32]:
        start, stop = self._rows(ref)
        rows = SAMPLE if stop - start >= SAMPLE else ROWS
        name = self._names.get(ref.name, ref.name)
        return self._checkpoint.read_rows(name, start, min(start + rows, stop)).astype(np.float32)


@dataclass(frozen=True)
class VendorPart:
    """A compiled file of a folder, and the layer that its name gives; None for a post layer."""

    path: Path
    layer: int | None


def parts_in(place: Path) -> list[VendorPart]:
    """The compiled layers and post layers in a folder, in order; or the file at `place`.

    Raises AxzooError when there are none, or a file is none.
    """
    paths = sorted(place.glob("*.axmodel")) if place.is_dir() else [place]
    found = [part for path in paths if (part := _part(path))]
    if not place.is_dir() and not place.is_file():
        raise AxzooError(f"{place} does not exist")
    if not found:
        raise AxzooError(
            f"{place} is not named like a layer or post layer, or has no such files: "
            f"MODELTYPE_p128_l0_together.axmodel, MODELTYPE_l0.axmodel or MODELTYPE_post.axmodel"
        )
    return sorted(found, key=lambda part: (part.layer is None, part.layer or 0, part.path.name))


def _part(path: Path) -> VendorPart | None:
    if match := _LAYER.fullmatch(path.name):
        return VendorPart(path, int(match["index"]))
    return VendorPart(path, None) if _POST.fullmatch(path.name) else None


def missing_files(parts: Sequence[VendorPart], layers: int) -> list[str]:
    """The files that a folder lacks for a model with so many layers."""
    builds: dict[tuple[str, str | None], set[int]] = {}
    for part in parts:
        if match := _LAYER.fullmatch(part.path.name):
            builds.setdefault((match["stem"], match["tail"]), set()).add(int(match["index"]))
    missing = [
        f"{stem}_l{index}{tail or ''}.axmodel is missing"
        for (stem, tail), indices in builds.items()
        for index in range(layers)
        if index not in indices
    ]
    return missing + ([] if any(part.layer is None for part in parts) else ["the file of the post layer is missing"])


def prove_part(part: VendorPart, model: CheckpointParts) -> WeightProof:
    """Compares a file with the layer that its name gives, and finds out which layer it holds if not that one.

    Raises AxzooError when the file is damaged or was not written by the vendor's compiler.
    """
    _require_vendor(part.path)
    if part.layer is not None and part.layer >= model.spec.num_hidden_layers:
        fault = f"is layer {part.layer} by its name, and the checkpoint has {model.spec.num_hidden_layers} layers"
        return WeightProof(part.path.name, "", 0, (fault,), (), (), ())
    refs = model.post() if part.layer is None else model.layer(part.layer)
    proof = prove_tensors(part.path, model.shapes(refs), model.reader(refs))
    if part.layer is None or not any(fault.endswith("weight is not in the file") for fault in proof.faults):
        return proof
    return replace(proof, faults=tuple(_identified(part, model, proof)))


def prove_folder(
    place: Path, model: CheckpointParts, tell: Callable[[WeightProof], None] = lambda proof: None
) -> list[WeightProof]:
    """Compares all files of a folder, or the file at `place`, and calls `tell` after each. The result also has the
    faults that show only beside other files (`constant_faults`)."""
    proofs, layers = [], []
    for part in parts_in(place):
        proof = prove_part(part, model)
        tell(proof)
        proofs.append(proof)
        if part.layer is not None and proof.proven:
            layers.append(proof)
    faults: dict[str, list[str]] = {}
    for file, fault in constant_faults(layers):
        faults.setdefault(file, []).append(fault)
    return [replace(proof, faults=(*proof.faults, *faults.get(proof.file, ()))) for proof in proofs]


def _identified(part: VendorPart, model: CheckpointParts, proof: WeightProof) -> Iterator[str]:
    """The faults of a file that does not hold its layer's weights, and whose weights it holds instead."""
    found = layers_in(read_vendor_file(part.path).table, model.samples)
    others = {role: [index for index in layers if index != part.layer] for role, layers in found.items()}
    others = {role: layers for role, layers in others.items() if layers and part.layer not in found[role]}
    counts = Counter(layer for layers in others.values() for layer in layers)
    if not counts:
        if proof.blocks:
            yield from proof.faults
        else:
            yield f"holds the weights of no layer of {model.folder}: it was compiled from another checkpoint"
        return
    layer, roles = counts.most_common(1)[0]
    refs = model.layer(layer)
    if prove_tensors(part.path, model.shapes(refs), model.reader(refs)).proven:
        yield f"holds the weights of layer {layer}"
        return
    if roles == len([ref for ref in refs.values() if len(ref.shape) == 2]):
        yield f"holds the matrices of layer {layer}"
    else:
        yield from (f"{role} is that of layer {layers[0]}" for role, layers in others.items())
    yield from proof.faults


def _require_vendor(path: Path) -> None:
    outline = read_outline(path)
    if METADATA_KEY in outline.metadata:
        remedy = f"`axzoo verify {path.parent} --checks` compares it with its checkpoint"
        raise AxzooError(f"{path} was built by the host backend: {remedy}")


def constant_faults(proofs: Sequence[WeightProof]) -> Iterator[tuple[str, str]]:
    """Layers whose constants are not those of the others, by file: rotary tables, for example, are the same in all
    layers of a build. `proofs` are those of proven layers."""
    by_places: dict[tuple[tuple[int, int], ...], list[WeightProof]] = {}
    for proof in proofs:
        by_places.setdefault(tuple((run.offset, run.length) for run in proof.constants), []).append(proof)
    most = max(by_places.values(), key=len, default=[])
    for alike in by_places.values():
        if len(alike) < len(most) and not any(proof.notes for proof in (*alike, *most)):
            sizes = [sum(run.length for run in group[0].constants) for group in (alike, most)]
            for proof in alike:
                yield (
                    proof.file,
                    f"has {sizes[0]} bytes of constants, at other places than the {sizes[1]} of other layers",
                )
        usual = Counter(tuple(run.blake3 for run in proof.constants) for proof in alike).most_common(1)[0][0]
        for proof in alike:
            different = [run for run, digest in zip(proof.constants, usual, strict=True) if run.blake3 != digest]
            if different:
                run = different[0]
                yield (
                    proof.file,
                    f"has constants that differ from those of other layers, in bytes {run.offset} to "
                    f"{run.offset + run.length - 1} of its weight table",
                )
