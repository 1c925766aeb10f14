"""The files and settings of a bundle folder, from its config.json (the keys that ax-llm's `axllm run DIR` reads)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from axzoo.core.errors import AxzooError
from axzoo.core.files import has_file, read_json
from axzoo.model.spec import MAX_LAYERS
from axzoo.runtime.prompting import BUNDLE_FORMATS, PICTURE_TOKENS
from axzoo.tokenizer.tokenizer_folder import vocabulary_file

_T = TypeVar("_T")


@dataclass(frozen=True)
class VisionFiles:
    """The files of a vision model by part kind: `vision`, or `encoder` and `resampler`; and the image's size.

    Large pictures can be cut into `max_slice_nums` slices of about `scale_resolution` pixels square. `tokens` are the
    ids before, for and after the rows of a picture in a prompt; None if the bundle has no tokenizer that has them.
    """

    files: Mapping[str, Path]
    height: int
    width: int
    max_slice_nums: int = 9
    scale_resolution: int = 448
    tokens: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """The compiled files of a model, and the shape of the embedding, which its raw file does not record.

    The host multiplies the rows of text tokens by `embedding_scale`.
    """

    layers: tuple[Path, ...]
    post: Path
    embedding: Path
    vocab_size: int
    hidden_size: int
    vision: VisionFiles | None = None
    embedding_scale: float = 1.0

    @property
    def vision_files(self) -> Mapping[str, Path]:
        """The files of the vision model by part kind; empty without one."""
        return {} if self.vision is None else self.vision.files


@dataclass(frozen=True, kw_only=True)
class Bundle(ModelFiles):
    """The files of a complete bundle and the settings of its host program.

    `tokenizer_type` is the value of --tokenizer_type whose prompt format conversations use if the tokenizer has no chat
    template, or None.
    """

    folder: Path
    post_config: Path
    tokenizer: Path
    eos_token_ids: frozenset[int]
    chat: bool
    tokenizer_type: int | None
    system_prompt: str
    bos: bool
    eos: bool
    mmap_embedding: bool

    def uses_chat(self, other_tokenizer: bool) -> bool:
        """Whether prompts go through the chat template or a prompt format. A bundle without a tokenizer leaves that to
        the other one."""
        has_format = self.chat or self.tokenizer_type is not None
        return has_format or (other_tokenizer and vocabulary_file(self.tokenizer) is None)


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle's config.json and check that its files exist. post_config.json and the tokenizer may be missing.

    Raises AxzooError when the folder is not a bundle, files are missing, or config.json is invalid or names a file
    outside the bundle.
    """
    config_path = folder / "config.json"
    if not has_file(config_path):
        raise AxzooError(
            f"{folder} is not a bundle: it has no config.json. Build it first, or pass a folder like results/AX650/NAME"
        )
    config = Config(config_path)
    count = config.get("axmodel_num", int)
    if not 1 <= count <= MAX_LAYERS:
        raise AxzooError(f"{config_path}: axmodel_num must be from 1 to {MAX_LAYERS}, not {count}")
    eos_token_ids = config.get("eos_token_ids", list)
    if not all(type(i) is int for i in eos_token_ids):
        raise AxzooError(f"{config_path}: eos_token_ids must be a list of token ids, not {eos_token_ids!r}")
    bundle = Bundle(
        folder=folder,
        layers=tuple(config.layer(i) for i in range(count)),
        post=config.file("filename_post_axmodel"),
        embedding=config.file("filename_tokens_embed"),
        vocab_size=config.get("tokens_embed_num", int),
        hidden_size=config.get("tokens_embed_size", int),
        post_config=config.file("post_config_path", "post_config.json"),
        tokenizer=folder / "tokenizer",
        eos_token_ids=frozenset(eos_token_ids),
        chat=config.get("chat", bool),
        tokenizer_type=config.prompt_format(),
        system_prompt=config.get("system_prompt", str, ""),
        bos=config.flag("bos", 0) or config.prompt_format() is not None,
        eos=config.flag("eos", 0),
        mmap_embedding=config.flag("use_mmap_load_embed", 1),
        vision=_vision(config),
        embedding_scale=config.get("embedding_scale", float, 1.0),
    )
    _require_files(bundle)
    return bundle


def _vision(config: Config) -> VisionFiles | None:
    keys = {"encoder": "filename_vpm_encoder_axmodel", "resampler": "filename_vpm_resampler_axmodel"}
    if not config.has(keys["resampler"]):
        return None
    if not config.flag("vpm_two_stage", 0):
        keys = {"vision": keys["resampler"]}
    files = {kind: config.file(key) for kind, key in keys.items()}
    height, width, slices, resolution = (
        config.get(name, int) for name in ("vpm_height", "vpm_width", "max_slice_nums", "scale_resolution")
    )
    return VisionFiles(files, height, width, slices, resolution, config.picture_tokens())


class Config:
    """Typed access to the keys of config.json.

    Raises AxzooError when the file is not a JSON object, or a key is missing or not valid.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        data = read_json(path)
        if not isinstance(data, dict):
            raise AxzooError(f"{path} must hold a JSON object")
        self._data: dict[str, Any] = data

    def has(self, key: str) -> bool:
        return key in self._data

    def get(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        value = self._data.get(key, default)
        if value is None:
            raise AxzooError(f"{self._path} has no {key}: build the bundle again")
        if type(value) is not kind:
            wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
            raise AxzooError(f"{self._path}: {key} must be {wanted}, not {value!r:.80}")
        return value

    def flag(self, key: str, default: int) -> bool:
        """Read 0, 1, false or true: ax-llm's configs use both forms."""
        value = self._data.get(key, default)
        if value not in (0, 1) or not isinstance(value, int):
            raise AxzooError(f"{self._path}: {key} must be 0 or 1, not {value!r}")
        return bool(value)

    def prompt_format(self) -> int | None:
        """The value of --tokenizer_type that `prompt_format` stands for."""
        name = self.get("prompt_format", str, "")
        if name and name not in BUNDLE_FORMATS:
            raise AxzooError(f"{self._path}: prompt_format must be {' or '.join(BUNDLE_FORMATS)}, not {name!r:.80}")
        return BUNDLE_FORMATS.get(name)

    def picture_tokens(self) -> tuple[int, int, int] | None:
        ids = self.get("picture_tokens", list, [])
        if ids and (len(ids) != len(PICTURE_TOKENS) or not all(type(index) is int and index >= 0 for index in ids)):
            raise AxzooError(f"{self._path}: picture_tokens must be three token ids, not {ids!r:.80}")
        return (ids[0], ids[1], ids[2]) if ids else None

    def file(self, key: str, default: str | None = None) -> Path:
        return self._inside(key, self.get(key, str, default))

    def layer(self, index: int) -> Path:
        key = "template_filename_axmodel"
        template = self.get(key, str)
        if template.count("%d") != 1:
            raise AxzooError(f"{self._path}: {key} must contain one %d for the layer number, not {template!r}")
        return self._inside(key, template.replace("%d", str(index)))

    def _inside(self, key: str, name: str) -> Path:
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise AxzooError(f"{self._path}: {key} must name a file inside the bundle, not {name!r}")
        return self._path.parent / path


def _require_files(bundle: Bundle) -> None:
    required = (*bundle.layers, bundle.post, bundle.embedding, *bundle.vision_files.values())
    missing = [path for path in required if not path.is_file()]
    if missing:
        names = ", ".join(str(path.relative_to(bundle.folder)) for path in missing[:3])
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise AxzooError(f"{bundle.folder} lacks {names}{more}: build the bundle again")
