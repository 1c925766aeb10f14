"""Packages of a bundle for the boards' host programs: each has the files, names and scripts that its host looks for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from axzoo.bundle.boards.stackflow import debian_package, mode_file, model_name
from axzoo.bundle.manifest import Manifest, read_manifest
from axzoo.bundle.verification import require_intact
from axzoo.core.errors import AxzooError
from axzoo.core.files import TEMPORARY_SUFFIX, read_json, require_space, write_json, write_text
from axzoo.runtime.bundle_folder import Bundle, Config, open_bundle
from axzoo.runtime.prompting import PROMPT_FORMATS, picture_placeholder
from axzoo.runtime.setup import load_served_tokenizer
from axzoo.tokenizer.conversation import end_id
from axzoo.tokenizer.tokenizer_txt import FILE_NAME as TOKENIZER_TXT

NPY = "model.embed_tokens.weight.npy"
_ROWS = 4096
"""Rows of the embedding that are converted at once."""

_SCRIPT = Path(__file__).with_name("board_tokenizer.py")  # not imported: it needs transformers
_SETTINGS_LINE = "SETTINGS: dict[str, Any] = {}\n"


@dataclass(frozen=True)
class _Source:
    """The bundle to package."""

    folder: Path
    manifest: Manifest
    files: Bundle
    config: Mapping[str, Any]

    @property
    def compiled(self) -> tuple[Path, ...]:
        """The files of layers, post layer and vision model."""
        return (*self.files.layers, self.files.post, *self.files.vision_files.values())

    @property
    def tokenizer_files(self) -> list[Path]:
        return [self.folder / name for name in self.manifest.files if name.startswith("tokenizer/")]


def package(folder: Path, host: str, output: Path | None) -> Path:
    """Writes the package of a bundle for `host`, one of PACKAGES, and returns its path.

    `output` is a new folder, for stackflow the .deb file or the folder to put it in; by default it is in the current
    folder. It appears when it is complete. Raises AxzooError when the bundle deviates from its manifest, lacks
    something that the host needs, or `output` exists.
    """
    require_intact(folder)
    _require_loadable(folder, host)
    source = _Source(folder, read_manifest(folder), open_bundle(folder), read_json(folder / "config.json"))
    return PACKAGES[host](source, output)


def _require_loadable(folder: Path, host: str) -> None:
    """Raises AxzooError with the reasons when none of the hosts that use the package would load it."""
    from axzoo.bundle.boards.board_check import board_check  # which knows the files of packages

    verdicts = board_check(folder, templates=False)
    faults = [verdicts[name].faults for name in _HOSTS[host]]
    if all(faults):
        raise AxzooError(f"{_HOSTS[host][0]} would not load {folder}: {'; '.join(faults[0])}")


_HOSTS = {"prefill": ("main_prefill", "context")} | {name: (name,) for name in ("axllm", "stackflow", "python")}
"""The hosts that a package is for."""


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder that becomes `output`. Raises AxzooError when `output` exists and is not empty."""
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise AxzooError(f"{output} exists: choose another output, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=TEMPORARY_SUFFIX, dir=output.parent) as name:
        folder = Path(name, "folder")
        folder.mkdir()
        yield folder
        if output.exists():
            output.rmdir()
        folder.rename(output)


def _add(paths: Iterator[Path] | list[Path] | tuple[Path, ...], folder: Path) -> None:
    """Links files into a folder, or copies them if the file system cannot link. Their content must not be edited."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except OSError:
            require_space(folder, path.stat().st_size)
            shutil.copyfile(path, folder / path.name)


def _copy(paths: list[Path] | tuple[Path, ...], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, sum(path.stat().st_size for path in paths))
    for path in paths:
        shutil.copyfile(path, folder / path.name)


def _for_axllm(source: _Source, output: Path | None) -> Path:
    output = output or Path(f"{source.manifest.name}-axllm")
    tokenizer = source.folder / TOKENIZER_TXT
    with _new_folder(output) as folder:
        _add((*source.compiled, source.files.embedding), folder)
        _copy((source.folder / "config.json", source.files.post_config, tokenizer), folder)
    return output


def _for_python(source: _Source, output: Path | None) -> Path:
    output = output or Path(f"{source.manifest.name}-python")
    with _new_folder(output) as folder:
        _add(source.compiled, folder)
        _copy(source.tokenizer_files, folder / "tokenizer")
        write_fp32_embedding(source.files, folder / NPY)
    return output


def write_fp32_embedding(files: Bundle, output: Path) -> None:
    """Writes the bundle's bf16 embedding as .npy: fp32 [vocab_size, hidden_size], the same values."""
    shape = (files.vocab_size, files.hidden_size)
    require_space(output.parent, 4 * shape[0] * shape[1])
    rows = np.memmap(files.embedding, ml_dtypes.bfloat16, "r", shape=shape)
    with output.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, shape[0], _ROWS):
            file.write(np.ascontiguousarray(rows[start : start + _ROWS], "<f4").data)


def _for_prefill(source: _Source, output: Path | None) -> Path:
    output = output or Path(f"{source.manifest.name}-prefill")
    with _new_folder(output) as folder:
        _add((*source.compiled, source.files.embedding), folder)
        _copy((source.folder / "config.json", source.files.post_config, source.folder / "run.sh"), folder)
        _copy(source.tokenizer_files, folder / "tokenizer")
        write_text(folder / "tokenizer_server.py", tokenizer_script(source.folder))
        for name, text in _run_scripts(source.config, source.manifest.chip).items():
            write_text(folder / name, text)
        for path in folder.glob("*.sh"):
            path.chmod(0o755)
    return output


def tokenizer_script(folder: Path) -> str:
    """The tokenizer server for boards, with the settings of a bundle.

    Raises AxzooError when transformers cannot do what axzoo's own server does for this model.
    """
    served = load_served_tokenizer(folder)
    tokenizer, kind = served.tokenizer, Config(folder / "config.json").prompt_format()
    settings: dict[str, Any] = {"chat": served.chat}
    if (end := end_id(tokenizer, served.chat)) is not None:
        settings["eos_id"] = end
    if served.image_rows:
        settings["picture"] = picture_placeholder(served.image_rows)
    if kind is not None and tokenizer.renderer is None:
        written = PROMPT_FORMATS[kind]
        settings |= {"markers": dict(written.markers), "generation_prompt": written.generation_prompt}
    elif served.chat and tokenizer.renderer is None:
        raise AxzooError(
            f"{folder} encodes conversations by token ids, which the board's tokenizer script cannot do: use axllm or "
            f"`axzoo tokenizer --model {folder}` on another machine"
        )
    text = _SCRIPT.read_text()
    assert _SETTINGS_LINE in text
    return text.replace(_SETTINGS_LINE, f"SETTINGS: dict[str, Any] = {settings!r}\n")


def _run_scripts(config: Mapping[str, Any], chip: str) -> dict[str, str]:
    """Scripts that start the tokenizer server, and the context hosts, which keep the conversation in memory."""
    serve = (
        "#!/bin/sh\n# The tokenizer server, which run.sh and run_ctx.sh need. Needs Python and transformers.\n"
        'cd "$(dirname "$0")" || exit 1\nexec python3 tokenizer_server.py --port 12345 --model_id tokenizer "$@"\n'
    )
    keys = (
        "template_filename_axmodel",
        "axmodel_num",
        "filename_post_axmodel",
        "filename_tokens_embed",
        "tokens_embed_num",
        "tokens_embed_size",
    )
    flags = "".join(f'  --{key} "{config[key]}" \\\n' for key in keys)
    flags += '  --use_mmap_load_embed 1 --live_print 1 \\\n  --url_tokenizer_model "http://127.0.0.1:12345" \\\n'

    def script(program: str, more: str = "") -> str:
        return (
            f"#!/bin/sh\n# Usage: ./run_ctx.sh [FLAGS], while run_tokenizer.sh runs. It starts the context host\n"
            f"# {program}, or the program in MAIN. Older ones also need `--tokenizer_type 2`.\n"
            f'cd "$(dirname "$0")" || exit 1\nmkdir -p kvcache\nexec ${{MAIN:-{program}}} \\\n{flags}{more}'
            f'  --kvcache_path ./kvcache "$@"\n'
        ).replace("./run_ctx.sh", "./run_axcl.sh" if more else "./run_ctx.sh")

    scripts = {"run_tokenizer.sh": serve}
    if chip == "AX650":  # nobody has published a context host for AX620E
        scripts["run_ctx.sh"] = script("main_ax650")
        scripts["run_axcl.sh"] = script("main_axcl_aarch64", "  --devices 0 \\\n")
    return scripts


def _for_stackflow(source: _Source, output: Path | None) -> Path:
    name = model_name(source.manifest)
    deb = debian_package(source.manifest)
    output = output or Path()
    output = output / deb.file_name if output.is_dir() else output
    if output.exists():
        raise AxzooError(f"{output} exists: choose another output, or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=TEMPORARY_SUFFIX, dir=output.parent) as temporary:
        tree = Path(temporary, "tree")
        top = tree / "opt/m5stack"
        data = top / "data" / name
        _copy((*source.compiled, source.files.embedding), data)
        _copy(source.tokenizer_files, data / "tokenizer")
        script = f"tokenizer_{name}.py"
        write_text(top / "scripts" / script, tokenizer_script(source.folder))
        size = sum(path.stat().st_size for path in source.compiled)
        post_config = read_json(source.files.post_config)
        mode = mode_file(source.manifest, source.config, post_config, script, size)
        (top / "data/models").mkdir(parents=True)
        write_json(top / "data/models" / f"mode_{name}.json", mode)
        deb.write(tree, output)
    return output


PACKAGES: Mapping[str, Callable[[_Source, Path | None], Path]] = {
    "axllm": _for_axllm,
    "stackflow": _for_stackflow,
    "python": _for_python,
    "prefill": _for_prefill,
}
"""The hosts that `package` knows."""
