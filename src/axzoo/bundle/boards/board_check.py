"""Whether the boards' hosts load a folder, decided on the desk by what each of them derives from the files.

The rules come from reading the hosts' sources; docs/boards.md says which were also tried on a board.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from axzoo.bundle.boards import GUARD_FLOOR_MIB
from axzoo.bundle.boards.axllm import config_faults
from axzoo.bundle.boards.board_folder import BoardFolder, open_board_folder, shape_groups
from axzoo.bundle.boards.lengths import HostLengths, host_lengths
from axzoo.bundle.boards.packages import NPY
from axzoo.bundle.boards.templates import template_fault
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.parts.groups import ShapeGroup
from axzoo.runtime.post_config import PostConfig
from axzoo.tokenizer.local import find_tokenizer
from axzoo.tokenizer.tokenizer_folder import vocabulary_file
from axzoo.tokenizer.tokenizer_txt import FILE_NAME as TOKENIZER_TXT
from axzoo.tokenizer.tokenizer_txt import MAX_BYTES, parse, shortcomings

_MIB = 1 << 20
_INT_BYTES = 2**31 - 1
"""The largest embedding that hosts read into memory: they keep its size in an int."""


@dataclass(frozen=True)
class HostVerdict:
    """Whether a host loads the folder. `faults` say why not, and what to do; `notes` what to know otherwise.

    `package` names the package of `axzoo package` that arranges the files for it, if it needs one.
    """

    host: str
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()
    package: str | None = None

    @property
    def loads(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """The entry in the manifest."""
        word = "no" if self.faults else "package" if self.package else "yes"
        return {"loads": word, "faults": list(self.faults), "notes": list(self.notes)}

    def lines(self, folder: Path) -> list[str]:
        """The verdict for people: a line, and one for each fault and note."""
        after = f" after `axzoo package {shlex.quote(str(folder))} --for {self.package}`" if self.package else ""
        head = f"{self.host}: does not load it" if self.faults else f"{self.host}: loads it{after}"
        return [head, *(f"  {text}" for text in (*self.faults, *self.notes))]


def board_check(folder: Path, free_mib: float | None = None, templates: bool = True) -> dict[str, HostVerdict]:
    """The verdict for each host of HOSTS. `free_mib` is the NPU's free memory in MiB, which is not compared if None.
    With `templates`, axllm's chat template is compared with the one in tokenizer/, if that is there.

    Raises AxzooError when the folder has no .axmodel files.
    """
    facts = _Facts(open_board_folder(folder), free_mib, templates)
    return {host: judge(host, facts) for host, judge in HOSTS.items()}


@dataclass(frozen=True)
class _Facts:
    """What several hosts derive from the files."""

    board: BoardFolder
    free_mib: float | None
    templates: bool

    @cached_property
    def common(self) -> tuple[str, ...]:
        """Faults that every host has with the compiled files and the embedding."""
        return tuple(_common_faults(self.board)) or tuple(_memory_faults(self.board, self.free_mib, 0))

    @cached_property
    def lengths(self) -> HostLengths:
        return host_lengths(self.board.layer_groups)

    @cached_property
    def post_group(self) -> ShapeGroup:
        assert self.board.post is not None
        return shape_groups(self.board.post)[0]

    @property
    def has_logits(self) -> bool:
        return any(tensor.name == "output" for tensor in self.post_group.outputs)

    @property
    def tokenizer(self) -> bool:
        return vocabulary_file(self.board.folder / "tokenizer") is not None


def _common_faults(board: BoardFolder) -> Iterator[str]:
    """Faults of files: missing, unreadable, or not of one model. Stops at the first kind that hides the others."""
    if not board.layers:
        found = "no layer is found: name the files PREFIX_pP_lI_together.axmodel, or write config.json"
        yield board.layer_fault or found
        return
    needed = {"post layer": board.post, "embedding": board.embedding}
    missing = [f"the {name} is missing: copy it into the folder" for name, path in needed.items() if path is None]
    named = [path for path in (*board.layers, board.post, board.embedding) if path is not None]
    missing += [f"{path.name} is missing: copy it into the folder" for path in named if not path.is_file()]
    if missing:
        yield from missing[:3]
        return
    try:
        groups = board.layer_groups
        for path in board.layers[1:]:
            if shape_groups(path) != groups:
                yield f"{path.name} has other tensors than {board.layers[0].name}: build both with the same lengths"
                return
        assert board.post is not None
        post = shape_groups(board.post)[0]
    except AxzooError as error:
        yield str(error)
        return
    yield from _of_sizes(board, post)
    yield from _of_dtypes(groups)


def _of_sizes(board: BoardFolder, post: ShapeGroup) -> Iterator[str]:
    hidden, size = board.hidden_size, board.config.get("tokens_embed_size")
    if type(size) is int and size != hidden:
        yield f"tokens_embed_size is {size}, but the layers take rows of {hidden}: write {hidden}"
    entering = next((tensor for tensor in post.inputs if tensor.name == "input"), None)
    if entering is None or prod(entering.shape) != hidden:
        yield f"{_name(board.post)} does not take rows of {hidden} as the layers give: it belongs to another model"
    logits = next((prod(tensor.shape) for tensor in post.outputs if tensor.name == "output"), None)
    rows = board.config.get("tokens_embed_num")
    if type(rows) is int and logits is not None and logits != rows:
        yield f"tokens_embed_num is {rows}, but {_name(board.post)} gives {logits} logits: write {logits}"
    assert board.embedding is not None
    expected, found = 2 * hidden * (rows if type(rows) is int else logits or 0), board.embedding.stat().st_size
    if expected and found != expected:
        name = board.embedding.name
        yield f"{name} has {found} bytes instead of {expected}: it belongs to another model or is cut off"


def _of_dtypes(groups: tuple[ShapeGroup, ...]) -> Iterator[str]:
    for tensor in groups[0].inputs:
        if tensor.name in ("input", "mask", "K_cache") and tensor.dtype != "bf16":
            yield f"the layers take {tensor.name} as {tensor.dtype}: hosts give bf16; build with hidden_state_type bf16"
            return


def _name(path: Path | None) -> str:
    return "the post layer" if path is None else path.name


def _memory_faults(board: BoardFolder, free_mib: float | None, floor: int) -> Iterator[str]:
    """Whether the files leave `floor` MiB of the NPU's memory free. axllm's memory guard floors each file to MiB."""
    if free_mib is None or board.post is None:
        return
    encoders = [value for key, value in board.config.items() if key.startswith("filename_") and "encoder" in key]
    files = (*board.layers, board.post, *(board.folder / name for name in encoders if isinstance(name, str)))
    needed = sum(path.stat().st_size // _MIB for path in files if path.is_file())
    if free_mib - needed < floor:
        yield (
            f"the compiled files have {needed} MiB and {floor} must stay free, but the NPU has {free_mib:.0f} MiB: use "
            f"s4 weights or a smaller model"
        )


def _axllm(host: str, facts: _Facts) -> HostVerdict:
    board = facts.board
    faults = [*_axllm_config(board), *facts.common]
    if not facts.common:
        faults += [*_stride(facts.lengths), *_no_logits(facts), *_guard(facts)]
    faults += [*_tokenizer_txt(board), *(_template(facts) if facts.templates else [])]
    mapped = board.config.get("b_use_mmap_load_embed", board.config.get("use_mmap_load_embed", False))
    if mapped is not True and _size(board.embedding) > _INT_BYTES:
        faults.append("the embedding has 2 GiB or more: set use_mmap_load_embed to true")
    faults += _sampling(board)
    return HostVerdict(host, tuple(faults))


def _guard(facts: _Facts) -> Iterator[str]:
    """What axllm's memory guard refuses."""
    config = facts.board.config
    if config.get("mem_guard_enable", True):
        floor = config.get("mem_guard_floor_mb", GUARD_FLOOR_MIB)
        yield from _memory_faults(facts.board, facts.free_mib, floor if type(floor) is int else GUARD_FLOOR_MIB)


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.is_file() else 0


def _axllm_config(board: BoardFolder) -> list[str]:
    if not board.has_config:
        return ["config.json is missing: build a bundle with axzoo, or write one as docs/boards.md says"]
    if board.fault:
        return [f"{board.fault}: axllm would go on with the settings of another model; write it again"]
    return config_faults(board.config)


def _stride(lengths: HostLengths) -> Iterator[str]:
    if lengths.fit:
        return
    if lengths.max_token_len > lengths.kv_cache_num:
        yield f"the mask has {lengths.max_token_len} slots and the KV cache only {lengths.kv_cache_num}: build it again"
        return
    yield (
        f"a prompt may reach token {lengths.capacity}, beyond the KV cache of {lengths.kv_cache_num}: the host would "
        f"place cache rows {lengths.row_stride} values apart instead of {lengths.kv_cache_size} and answer nonsense; "
        f"build with kv_cache_len {lengths.capacity} or more, or with a shorter last_kv_cache_len"
    )


def _no_logits(facts: _Facts) -> Iterator[str]:
    if not facts.has_logits:
        yield f"{_name(facts.board.post)} gives no logits: build it with post_topk 0"


def _tokenizer_txt(board: BoardFolder) -> list[str]:
    """Faults of the file that config.json names as url_tokenizer_model."""
    name = board.config.get("url_tokenizer_model", TOKENIZER_TXT)
    if not isinstance(name, str) or "://" in name:
        return []  # config_faults says so
    path = board.folder / name
    if not path.is_file():
        return [f"{name} is missing: build the bundle with this axzoo"]
    if path.stat().st_size > MAX_BYTES:
        return [f"{name} has more than {MAX_BYTES >> 20} MiB: copy the file again"]
    try:
        txt = parse(path.read_bytes(), name)
    except AxzooError as error:
        return [str(error)]
    ends, rows = board.config.get("eos_token_ids"), board.config.get("tokens_embed_num")
    faults = list(shortcomings(txt, ends if isinstance(ends, list) else ()))
    if type(rows) is int and len(txt.tokens) > rows:
        faults.append(f"{name} has {len(txt.tokens)} tokens, but the embedding only {rows} rows: it is another model's")
    return faults


def _template(facts: _Facts) -> Iterator[str]:
    """Whether axllm's template writes the prompts of the folder's own tokenizer."""
    name = facts.board.config.get("tokenizer_type")
    tokenizer = find_tokenizer(facts.board.folder / "tokenizer") if facts.tokenizer else None
    if not isinstance(name, str) or tokenizer is None or tokenizer.renderer is None:
        return
    render = tokenizer.renderer.render
    system = facts.board.config.get("system_prompt", "")
    if fault := template_fault(name, lambda messages, variables: render(messages, True, variables), system):
        yield fault


def _sampling(board: BoardFolder) -> list[str]:
    name = board.config.get("post_config_path", "post_config.json")
    path = board.folder / name if isinstance(name, str) else board.folder
    if not path.is_file():
        return []  # axllm warns and chooses the likeliest token
    known = [field.name for field in fields(PostConfig)]
    try:
        values = read_json(path, _MIB)
        if not isinstance(values, dict):
            raise AxzooError(f"{path.name} is not a JSON object")
        PostConfig(**{key: value for key, value in values.items() if key in known})
    except AxzooError as error:
        return [f"{path.name}: {error}".replace(f"{path.name}: {path}", path.name)]
    missing = [key for key in known if key not in values]
    return [f"{path.name} has no {missing[0]}, and older versions of axllm need all nine keys"] if missing else []


def _prefill(host: str, facts: _Facts) -> HostVerdict:
    return _served(host, facts, [*facts.common, *([] if facts.common else _no_prefill(facts))])


def _context(host: str, facts: _Facts) -> HostVerdict:
    faults = [*facts.common]
    if not faults:
        faults = [*_no_prefill(facts), *_stride(facts.lengths), *_no_logits(facts)]
    return _served(host, facts, faults)


def _served(host: str, facts: _Facts, faults: list[str], package: str = "prefill") -> HostVerdict:
    """A host that asks a tokenizer server, which the package adds."""
    if not facts.tokenizer:
        faults.append("there is no folder `tokenizer` with the checkpoint's tokenizer files: copy it there")
    return HostVerdict(host, tuple(faults), package=package)


def _no_prefill(facts: _Facts) -> Iterator[str]:
    if not facts.lengths.prefill_token_num:
        yield "the layers have no prefill group: build with prefill_len 128"


def _python(host: str, facts: _Facts) -> HostVerdict:
    faults = [*facts.common]
    if not faults:
        faults = [*_no_prefill(facts), *_no_logits(facts), *_python_names(facts)]
    if not facts.tokenizer:
        faults.append("there is no folder `tokenizer` with the checkpoint's tokenizer files: copy it there")
    return HostVerdict(host, tuple(faults), package=None if (facts.board.folder / NPY).is_file() else "python")


def _python_names(facts: _Facts) -> Iterator[str]:
    chunk = facts.lengths.prefill_token_num
    template = facts.board.template or ""
    if not template.endswith(f"_p{chunk}_l%d_together.axmodel"):
        yield f"the layers are not named PREFIX_p{chunk}_l0_together.axmodel: rename them"


def _stackflow(host: str, facts: _Facts) -> HostVerdict:
    faults = [*facts.common]
    if not faults:
        faults = [*_no_prefill(facts), *_no_logits(facts)]
        if len(facts.board.layer_groups) > 2:  # precompute_len chooses the context host
            faults += _stride(facts.lengths)
    return _served(host, facts, faults, "stackflow")


HOSTS: Mapping[str, Callable[[str, _Facts], HostVerdict]] = {
    "axllm": _axllm,
    "main_prefill": _prefill,
    "context": _context,
    "python": _python,
    "stackflow": _stackflow,
}
"""The hosts. `context` are main_ax650 and main_axcl_*, `python` those that use pyaxengine."""
