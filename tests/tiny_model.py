"""Small random checkpoints, the transformers models they are saved from, and the files that axzoo builds from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.bundle.completion import BundlePlan
from axzoo.calibrate.states import calibrate
from axzoo.core.files import write_json
from axzoo.parts.kinds import kind_of, part_ids
from axzoo.parts.lock import make_lock, write_lock
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.decoder import Decoder
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.model import LayerwiseNetwork, Model
from axzoo.weights.formats import is_calibrated
from axzoo.weights.recipe import Recipe

LAYERS = 2
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 262,
    "max_position_embeddings": 128,
    "initializer_range": 0.25,
    "pad_token_id": None,
}
NORM_EPS = {"phi": {"layer_norm_eps": 1e-5}}
EXACT = Recipe("fp32", "fp32", "fp32", prefill_len=8, kv_cache_len=31, last_kv_cache_len=(8, 16))
"""Only the embedding is rounded."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that axllm has, too."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, and the transformers model in fp32 with exactly the same values."""

    folder: Path
    model: PreTrainedModel

    @property
    def model_type(self) -> str:
        return str(self.model.config.model_type)

    @property
    def layers(self) -> int:
        return int(self.model.config.num_hidden_layers)

    @property
    def source(self) -> Path:
        return self.folder / "source.json"

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits [tokens, vocab_size] after each token."""
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.model(torch.tensor([list(ids)])).logits[0].numpy()
        return logits


def make_checkpoint(
    folder: Path,
    shape: Mapping[str, Any] | None = None,
    model_type: str = "llama",
    dtype: Literal["F32", "F16", "BF16"] = "F32",
    shard_size: str = "5GB",
    old_config: bool = False,
    template: str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
) -> Checkpoint:
    """Save a model in which all tensors are random, including biases and norms.

    The values of the embedding are representable in bf16, because the board stores it in bf16. `old_config` writes a
    config.json with the keys of transformers 4.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            model_type, **{**SHAPE, **NORM_EPS.get(model_type, {"rms_norm_eps": 1e-5}), **(shape or {})}
        )
    )
    model.train(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data = torch.randn_like(parameter) * 0.3 + (0 if name.endswith("bias") else 1)
        parameter.data = parameter.data.to(DTYPES[dtype]).float()
    embedding = model.model.embed_tokens.weight
    embedding.data = embedding.data.bfloat16().float()
    stored = {name: tensor.to(DTYPES[dtype]) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=stored, max_shard_size=shard_size)
    if old_config:
        _write_old_config(folder / "config.json")
    _write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template)
    write_json(folder / "source.json", {"source": {"path": "tiny"}, "root": ".", "files": {}})
    return Checkpoint(folder, model)


def _write_old_config(path: Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config.pop("layer_types", None)
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {"type": kind, **rope} if rope else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


def _write_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per byte and two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<bos>", "eos_token": "<eos>"})


@dataclass(frozen=True)
class Built:
    """The compiled files of a checkpoint, and what is needed to complete them to a bundle."""

    folder: Path
    locks: Path
    source: Path
    model_type: str
    num_hidden_layers: int
    recipe: Recipe
    receipts: tuple[Path, ...]

    def _paths(self, kind: str) -> list[Path]:
        parts = [part for part in part_ids(self) if part.kind == kind]
        return [self.folder / kind_of(kind).file_name(self.model_type, self.recipe, part.index) for part in parts]

    @property
    def layers(self) -> list[Path]:
        return self._paths("layer")

    @property
    def post(self) -> Path:
        return self._paths("post")[0]

    @property
    def embedding(self) -> Path:
        return self._paths("embed")[0]

    @property
    def plan(self) -> BundlePlan:
        """The input of `complete_bundle`."""
        return BundlePlan(
            folder=self.folder,
            name="tiny-w8a16",
            model="tiny",
            chip="AX650",
            backend="host",
            recipe=self.recipe,
            chat=True,
            lock=self.locks,
            source=self.source,
            receipts=self.receipts,
        )

    def model(self, checkpoint: Checkpoint) -> Model:
        """The files, loaded in exact mode."""
        config = checkpoint.model.config
        embedding = Embedding(self.embedding, config.vocab_size, config.hidden_size)
        decoder = Decoder([InferenceSession(path) for path in self.layers])
        return Model(embedding, LayerwiseNetwork(decoder, InferenceSession(self.post)))

    def moved(self, folder: Path) -> Built:
        """Copy the files to another folder, for tests that change them."""
        shutil.copytree(self.folder, folder)
        return replace(self, folder=folder)


def build(checkpoint: Checkpoint, recipe: Recipe, root: Path, text: Path | None = None) -> Built:
    """Build lock, layers, post layer and embedding under `root`. `text` calibrates a recipe that needs it."""
    locks = root / "locks"
    lock = make_lock(checkpoint.folder, checkpoint.model_type, checkpoint.layers)
    write_lock(lock, locks, checkpoint.folder, {"path": "tiny"})
    built = Built(root / "bundle", locks, checkpoint.source, checkpoint.model_type, checkpoint.layers, recipe, ())
    calibration = root / "calibration" if is_calibrated(recipe) else None
    if calibration:
        calibrate(locks, checkpoint.source, calibration, text, 512)
    files = []
    for part, path in zip(part_ids(built), (*built.layers, built.post, built.embedding), strict=True):
        files.append(PartFile(locks / part.lock_file, path, root / "receipts" / f"{path.stem}.json"))
    layers, rest = files[: checkpoint.layers], files[checkpoint.layers :]
    build_parts(PartJob(layers, checkpoint.source, root / "store", recipe, "host", "AX650", calibration))
    build_parts(PartJob(rest, checkpoint.source, root / "store", recipe, "host", "AX650"))
    return replace(built, receipts=tuple(file.receipt for file in files))
