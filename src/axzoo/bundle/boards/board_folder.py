"""A folder as a board's host sees it: a bundle, a vendor-built folder, or a published package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from axzoo.backends.host.inspection import inspect_file
from axzoo.backends.pulsar2.vendor_file import LAYER_FILE, split_number
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.model.spec import MAX_LAYERS
from axzoo.parts.groups import ShapeGroup, TensorSpec

CONFIG_LIMIT = 1 << 20
_OF_LAYER = {"K_cache", "V_cache", "indices", "input", "mask", "K_cache_out", "output"}
_NUMBER = re.compile(r"%0?\d{0,2}[diu]")
"""The place of the layer's number in a template, as C's printf knows it."""


@dataclass(frozen=True)
class BoardFolder:
    """The files that a host finds: by config.json, or by their names if there is none.

    `fault` says why config.json cannot be used, `layer_fault` why its layers cannot be found. `template` has one place
    for the layer's number, such as %d. Files may be missing.
    """

    folder: Path
    config: Mapping[str, Any]
    fault: str | None
    layer_fault: str | None
    template: str | None
    layers: tuple[Path, ...]
    post: Path | None
    embedding: Path | None

    @property
    def has_config(self) -> bool:
        return (self.folder / "config.json").is_file()

    @cached_property
    def layer_groups(self) -> tuple[ShapeGroup, ...]:
        """The shape groups of layer 0. Raises AxzooError when the file is not a decoder layer."""
        groups = shape_groups(self.layers[0])
        for number, group in enumerate(groups):
            ranks = {tensor.name: len(tensor.shape) for tensor in (*group.inputs, *group.outputs)}
            if lacking := sorted(name for name in _OF_LAYER if not ranks.get(name)):
                raise AxzooError(
                    f"{self.layers[0].name} has no tensor {lacking[0]} in group {number}, so it is not a decoder layer"
                )
        return groups

    @property
    def hidden_size(self) -> int:
        return next(tensor.shape[-1] for tensor in self.layer_groups[0].inputs if tensor.name == "input")


def open_board_folder(folder: Path) -> BoardFolder:
    """Looks for the files. Raises AxzooError when `folder` is not a folder or has no .axmodel files."""
    if not folder.is_dir():
        raise AxzooError(f"{folder} is not a folder: pass a bundle, or a folder with a model's .axmodel files")
    if not any(folder.glob("*.axmodel")):
        raise AxzooError(f"{folder} has no .axmodel files: pass a bundle, or a folder with a model's .axmodel files")
    config, fault = _config(folder / "config.json")
    template, count, layer_fault = _layers(folder, config)
    layers = [folder / layer_name(template, i) for i in range(count)] if template else []
    return BoardFolder(
        folder=folder,
        config=config,
        fault=fault,
        layer_fault=layer_fault,
        template=template,
        layers=tuple(layers),
        post=_file(folder, config, "filename_post_axmodel", "*_post.axmodel"),
        embedding=_file(folder, config, "filename_tokens_embed", "*embed_tokens*.bfloat16.bin"),
    )


def layer_name(template: str, index: int) -> str:
    """The file name of a layer. `template` has exactly one place for the number, and `%%` for a percent sign."""
    return _NUMBER.sub(lambda place: f"{place[0][:-1]}d", template.replace("%%", "\0")).replace("\0", "%%") % index


def _layers(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, int, str | None]:
    """The template, the number of layers, and why the layers cannot be found."""
    by_name, found = _by_name(folder)
    template, count = config.get("template_filename_axmodel", by_name), config.get("axmodel_num", found)
    if not isinstance(template, str) or type(count) is not int or not 0 < count <= MAX_LAYERS:
        return None, 0, None  # a missing or wrong key is a fault of its own
    plain = template.replace("%%", "")
    if plain.count("%") != 1 or not _NUMBER.search(plain):
        return None, 0, f"template_filename_axmodel {template!r:.80} must have exactly one %d, for the layer's number"
    if (folder / layer_name(template, count)).is_file():
        return (
            None,
            0,
            f"axmodel_num is {count}, but {layer_name(template, count)} is there, too: write the right number",
        )
    return template, count, None


def shape_groups(path: Path) -> tuple[ShapeGroup, ...]:
    """The shape groups of a compiled file, decode first.

    The vendor's files name the tensors of group g > 0 with the suffix _g; files of the host backend list their groups.
    Raises AxzooError when the file is damaged.
    """
    found = inspect_file(path)
    if found.header is not None:
        return found.header.groups
    groups: dict[int, tuple[list[TensorSpec], list[TensorSpec]]] = {}
    for side, tensors in enumerate((found.outline.inputs, found.outline.outputs)):
        for tensor in tensors:
            name, group = split_number(tensor.name)
            shape = tuple(length for length in tensor.shape if isinstance(length, int))
            if len(shape) != len(tensor.shape) or min(shape, default=1) < 1:
                raise AxzooError(f"{path.name}: {tensor.name} has no fixed shape")
            groups.setdefault(group, ([], []))[side].append(TensorSpec(name, tensor.dtype, shape))
    if not groups:
        raise AxzooError(f"{path.name} declares no tensors, so no host can load it")
    return tuple(ShapeGroup(tuple(inputs), tuple(outputs)) for _, (inputs, outputs) in sorted(groups.items()))


def _config(path: Path) -> tuple[Mapping[str, Any], str | None]:
    if not path.is_file():
        return {}, None
    try:
        config = read_json(path, CONFIG_LIMIT)
    except AxzooError as error:
        return {}, str(error).replace(f"{path}", path.name)
    if not isinstance(config, dict):
        return {}, "config.json is not a JSON object"
    return config, None


def _by_name(folder: Path) -> tuple[str | None, int]:
    """The template and the number of the layers, from the files' names."""
    found = [match for path in folder.glob("*.axmodel") if (match := LAYER_FILE.fullmatch(path.name))]
    if not found:
        return None, 0
    first = min(found, key=lambda match: (match["stem"], int(match["index"])))
    alike = [match for match in found if match["stem"] == first["stem"]]
    template = f"{first['stem'].replace('%', '%%')}_l%d{first['tail'] or ''}.axmodel"
    return template, 1 + max(int(match["index"]) for match in alike)


def _file(folder: Path, config: Mapping[str, Any], key: str, pattern: str) -> Path | None:
    name = _text(config, key)
    return folder / name if name else next(iter(sorted(folder.glob(pattern))), None)


def _text(config: Mapping[str, Any], key: str) -> str | None:
    value = config.get(key)
    return value if isinstance(value, str) and value else None
