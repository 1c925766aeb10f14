"""The files of the vendor's compiler in a folder, against the checkpoint that they should hold.

The checkpoint is locked, or any folder with config.json. The files are those of a manifest, or all in a folder that
have the compiler's file names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from axzoo.backends.host.container import METADATA_KEY
from axzoo.backends.host.outline import read_outline
from axzoo.backends.pulsar2.row_blocks import ROWS
from axzoo.backends.pulsar2.vendor_file import LAYER_FILE, POST_FILE, read_vendor_file
from axzoo.backends.pulsar2.weight_proof import SAMPLE, WeightProof, layers_in, prove_tensors
from axzoo.checkpoint import open_checkpoint
from axzoo.checkpoint.gptq import gptq_config
from axzoo.checkpoint.tensors import Checkpoint, row_blocks
from axzoo.core.errors import AxzooError
from axzoo.fetch.sources import RECEIPT, checkpoint_folder
from axzoo.model.config_view import ConfigView
from axzoo.model.families import load_family
from axzoo.model.reading import read_config
from axzoo.model.spec import TensorRef
from axzoo.parts.kind import RowReader
from axzoo.parts.part import Part, verified_blocks
from axzoo.parts.tensor_names import model_names


class ModelWeights(ABC):
    """The weights that the files of a model should hold. `layer` is the index of a layer; None is the post layer.

    `place` is how messages name the checkpoint, `num_layers` the number of its layers.
    """

    place: str
    num_layers: int
    _checkpoint: Checkpoint

    @abstractmethod
    def shapes(self, layer: int | None) -> dict[str, tuple[int, ...]]:
        """The shapes by role. Raises AxzooError when a tensor is missing or has another shape."""

    @abstractmethod
    def reader(self, layer: int | None) -> RowReader:
        """Reads the rows of a role in blocks."""

    @abstractmethod
    def _rows(self, layer: int, role: str) -> tuple[str, int, int]:
        """The checkpoint's tensor that has the role, and the first row and the end of its rows."""

    @cached_property
    def samples(self) -> dict[int, dict[str, NDArray[np.float32]]]:
        """The first rows of the matrices of each layer."""
        return {
            index: {role: self._first(index, role) for role, shape in self.shapes(index).items() if len(shape) == 2}
            for index in range(self.num_layers)
        }

    def _first(self, layer: int, role: str) -> NDArray[np.float32]:
        name, start, stop = self._rows(layer, role)
        rows = SAMPLE if stop - start >= SAMPLE else ROWS
        return self._checkpoint.read_rows(name, start, min(start + rows, stop)).astype(np.float32)


class LockedWeights(ModelWeights):
    """The weights of a locked checkpoint, in the folder `checkpoint`. `locked` are the lock's layers and post layer.

    Reading raises AxzooError when the checkpoint changed since it was locked.
    """

    def __init__(self, locked: Iterable[Part], checkpoint: Path) -> None:
        _refuse_gptq(checkpoint)
        self._parts = {part.id.index: part for part in locked}
        self.place, self.num_layers = str(checkpoint), sum(index is not None for index in self._parts)
        self._checkpoint = open_checkpoint(checkpoint)

    def shapes(self, layer: int | None) -> dict[str, tuple[int, ...]]:
        return self._parts[layer].shapes

    def reader(self, layer: int | None) -> RowReader:
        tensors = self._parts[layer].tensors
        return lambda role: verified_blocks(self._checkpoint, tensors[role])

    def _rows(self, layer: int, role: str) -> tuple[str, int, int]:
        tensor = self._parts[layer].tensors[role]
        return tensor.name, *tensor.rows


class FolderWeights(ModelWeights):
    """The weights of a checkpoint that is not locked: a folder with config.json, or with the receipt of a fetch.

    Only the sizes of config.json are read, into `spec`: keys that axzoo does not support do not matter here.
    """

    def __init__(self, folder: Path) -> None:
        receipt = folder / RECEIPT
        self._folder = checkpoint_folder(receipt) if receipt.is_file() else folder
        path = self._folder / "config.json"
        config = read_config(path, None)
        if not isinstance(config.get("model_type"), str):
            raise AxzooError(f"{path} is not the config.json of a model: it has no model_type")
        self._family = load_family(config["model_type"])
        self.spec = self._family.decoder_spec(ConfigView(config, path))
        self.place, self.num_layers = str(self._folder), self.spec.num_hidden_layers
        _refuse_gptq(self._folder)
        self._checkpoint = open_checkpoint(self._folder)

    @cached_property
    def _names(self) -> dict[str, str]:
        needed = [ref.name for layer in range(self.num_layers) for ref in self._refs(layer).values()]
        return model_names(self._checkpoint.tensors, needed, self._family.embed_tensor(self.spec).name)

    def _refs(self, layer: int | None) -> Mapping[str, TensorRef]:
        if layer is None:
            return self._family.post_tensors(self.spec)
        return self._family.layer_tensors(self.spec, layer)

    def shapes(self, layer: int | None) -> dict[str, tuple[int, ...]]:
        return {
            role: (stop - start, *ref.shape[1:])
            for role, ref in self._refs(layer).items()
            for _, start, stop in [self._found(ref)]
        }

    def reader(self, layer: int | None) -> RowReader:
        refs = self._refs(layer)
        return lambda role: row_blocks(self._checkpoint, *self._found(refs[role]))

    def _rows(self, layer: int, role: str) -> tuple[str, int, int]:
        return self._found(self._refs(layer)[role])

    def _found(self, ref: TensorRef) -> tuple[str, int, int]:
        name = self._names.get(ref.name, ref.name)
        info = self._checkpoint.tensors.get(name)
        if info is None or info.shape != ref.shape:
            found = "has none" if info is None else f"has one of shape {list(info.shape)}"
            raise AxzooError(f"{self.place} {found}: its config.json requires {ref.name} of shape {list(ref.shape)}")
        return name, *(ref.rows or (0, ref.shape[0]))


def _refuse_gptq(folder: Path) -> None:
    if gptq_config(folder) is not None:
        raise AxzooError(
            f"{folder} has GPTQ codes with scales per group, and no published file shows how the compiler "
            f"stores them: compare with a checkpoint that is not quantized"
        )


@dataclass(frozen=True)
class VendorPart:
    """A compiled file, and the layer that it should hold; None for a post layer. `weight_type` is the type that its
    matrices must have; None accepts any."""

    path: Path
    layer: int | None
    weight_type: str | None = None


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
    if match := LAYER_FILE.fullmatch(path.name):
        return VendorPart(path, int(match["index"]))
    return VendorPart(path, None) if POST_FILE.fullmatch(path.name) else None


def missing_files(parts: Sequence[VendorPart], layers: int) -> list[str]:
    """The files that a folder lacks for a model with so many layers."""
    builds: dict[tuple[str, str | None], set[int]] = {}
    for part in parts:
        if match := LAYER_FILE.fullmatch(part.path.name):
            builds.setdefault((match["stem"], match["tail"]), set()).add(int(match["index"]))
    missing = [
        f"{stem}_l{index}{tail or ''}.axmodel is missing"
        for (stem, tail), indices in builds.items()
        for index in range(layers)
        if index not in indices
    ]
    return missing + ([] if any(part.layer is None for part in parts) else ["the file of the post layer is missing"])


def prove_part(part: VendorPart, model: ModelWeights) -> WeightProof:
    """Compares a file with the layer that it should hold, and finds out which layer it holds if not that one.

    Raises AxzooError when the file is damaged or was not written by the vendor's compiler.
    """
    _require_vendor(part.path)
    if part.layer is not None and part.layer >= model.num_layers:
        fault = f"is layer {part.layer} by its name, and the checkpoint has {model.num_layers} layers"
        return WeightProof(part.path.name, "", 0, (fault,), (), (), ())
    proof = prove_tensors(part.path, model.shapes(part.layer), model.reader(part.layer), part.weight_type)
    if part.layer is None or not any(fault.endswith("weight is not in the file") for fault in proof.faults):
        return proof
    return replace(proof, faults=tuple(_identified(part, model, proof)))


def prove_parts(
    parts: Iterable[VendorPart], model: ModelWeights, tell: Callable[[WeightProof], None] = lambda proof: None
) -> list[WeightProof]:
    """Compares the files of a build, and calls `tell` after each. The result also has the faults that show only beside
    other files (`constant_faults`)."""
    proofs, layers = [], []
    for part in parts:
        proof = prove_part(part, model)
        tell(proof)
        proofs.append(proof)
        if part.layer is not None and proof.proven:
            layers.append(proof)
    faults: dict[str, list[str]] = {}
    for file, fault in constant_faults(layers):
        faults.setdefault(file, []).append(fault)
    return [replace(proof, faults=(*proof.faults, *faults.get(proof.file, ()))) for proof in proofs]


def _identified(part: VendorPart, model: ModelWeights, proof: WeightProof) -> Iterator[str]:
    """The faults of a file that does not hold its layer's weights, and whose weights it holds instead."""
    found = layers_in(read_vendor_file(part.path).table, model.samples)
    others = {role: [index for index in layers if index != part.layer] for role, layers in found.items()}
    others = {role: layers for role, layers in others.items() if layers and part.layer not in found[role]}
    counts = Counter(layer for layers in others.values() for layer in layers)
    if not counts:
        if proof.blocks:
            yield from proof.faults
        else:
            yield f"holds the weights of no layer of {model.place}: it was compiled from another checkpoint"
        return
    layer, roles = counts.most_common(1)[0]
    shapes = model.shapes(layer)
    if prove_tensors(part.path, shapes, model.reader(layer), part.weight_type).proven:
        yield f"holds the weights of layer {layer}"
        return
    if roles == len([shape for shape in shapes.values() if len(shape) == 2]):
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
