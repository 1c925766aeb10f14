"""A project folder in which tests run Snakemake, and a llama small enough to build in seconds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from axzoo.cli import main
from axzoo.matrix.lock_state import MADE_FROM

REPOSITORY = Path(__file__).parents[2]
LAYERS = 3
MAX_POSITIONS = 128
DEFAULTS: dict[str, Any] = {"prefill_len": 16, "kv_cache_len": 63, "last_kv_cache_len": [16, 32], "chips": ["AX650"]}
ENTRY: dict[str, Any] = {"path": "checkpoint", "model_type": "llama", "num_hidden_layers": LAYERS}
DEMO = "results/AX650/SmolLM2-135M-Instruct-Q4_1-w8a16"
"""The bundle of config/demo.yaml."""
TINY = "results/AX650/tiny-w8a16"
"""The bundle of a new project."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["What is the capital of France? The capital of France is Paris.", "user assistant system"]


@dataclass(frozen=True)
class Run:
    """A run of Snakemake: its exit status, its output, and the number of finished jobs by rule."""

    status: int
    shown: str
    jobs: Mapping[str, int]

    @property
    def did_nothing(self) -> bool:
        return self.status == 0 and "Nothing to be done" in self.shown and not self.jobs


@dataclass(frozen=True)
class Project:
    """A folder with the repository's workflow, a checkpoint in `checkpoint`, and its own matrix."""

    folder: Path

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def write_matrix(self, models: Mapping[str, Any], name: str = "zoo.yaml", **defaults: Any) -> None:
        plain = json.loads(
            json.dumps({"defaults": DEFAULTS | defaults, "models": models})
        )  # avoids shared objects, which become YAML aliases
        (self / f"config/{name}").write_text(yaml.safe_dump(plain))

    def edit_tensors(self, change: Callable[[dict[str, torch.Tensor]], object], checkpoint: str = "checkpoint") -> None:
        """Applies `change` to the tensors of a checkpoint."""
        file = self / checkpoint / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    def snakemake(self, *arguments: str, **environment: str) -> Run:
        """Runs `snakemake --cores 2 ARGUMENTS` from this Python environment."""
        earlier = set(self.folder.glob(".snakemake/log/*"))
        done = subprocess.run(
            ["snakemake", "--cores", "2", *arguments],
            cwd=self.folder,
            env=untraced() | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        logs = [log.read_text() for log in set(self.folder.glob(".snakemake/log/*")) - earlier]
        finished = Counter(re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)$", "\n".join(logs), re.MULTILINE))
        del finished["all"]
        return Run(done.returncode, done.stdout, finished)

    def files(self, folder: str = "results") -> set[str]:
        """All files under `folder`, as relative paths, except the store's records of the projects that use it."""
        found = (path.relative_to(self / folder) for path in (self / folder).rglob("*") if path.is_file())
        return {str(path) for path in found if "users" not in path.parts}

    def state(self, folder: str = "results") -> dict[str, tuple[int, int, int]]:
        """Inode, mtime and size of each file."""
        stats = {name: (self / folder / name).stat() for name in self.files(folder)}
        return {name: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}

    def digests(self, folder: str) -> dict[str, str]:
        """The sha256 of each file, except records of times: stamps of files, and a bundle's receipt with its stamps."""
        names = (name for name in self.files(folder) if not _has_times(folder, name))
        return {name: sha256(self / folder / name) for name in names}

    def made(self) -> dict[str, str]:
        """The sha256 of each file in bundles, receipts, locks and store.

        Without made_from.json, because its digest of source.json depends on the project's folder.
        """
        parts = [path.relative_to(self.folder) for path in (self / "results").glob("AX*")]
        parts += [Path("results", name) for name in ("receipts", "locks", "store")]
        made = {f"{part}/{name}": digest for part in parts for name, digest in self.digests(str(part)).items()}
        return {name: digest for name, digest in made.items() if Path(name).name != MADE_FROM}

    def copy_to(self, folder: Path) -> Project:
        """Copies the project including mtimes and hard links, and fetches and locks its copied checkpoint."""
        subprocess.run(["cp", "-a", str(self.folder), str(folder)], check=True)
        source, layers = "results/checkpoints/tiny/source.json", str(LAYERS)
        with contextlib.chdir(folder):
            assert main(["fetch", "--path", "checkpoint", "--output", str(Path(source).parent)]) == 0
            model = ["--model_type", "llama", "--num_hidden_layers", layers, "--output", "results/locks/tiny"]
            assert main(["lock", "--source", source, *model]) == 0
        return Project(folder)


def _has_times(folder: str, name: str) -> bool:
    """Whether a file of `folder` is results/digests.json or results/receipts/CHIP/NAME.json."""
    path = Path(folder, name)
    return path == Path("results/digests.json") or (path.parts[:2] == ("results", "receipts") and len(path.parts) == 4)


def without_marks(digests: Mapping[str, str]) -> dict[str, str]:
    """Removes Snakemake's empty timestamp files of folders."""
    return {name: digest for name, digest in digests.items() if not name.endswith(".snakemake_timestamp")}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def untraced() -> dict[str, str]:
    """The environment for subprocesses without coverage, which would trace all of Snakemake."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | {"PATH": path}


def new_project(folder: Path, checkpoint: Path) -> Project:
    """Creates a project with the repository's workflow, a copy of `checkpoint`, and one build: `tiny`, s8, AX650."""
    for name in ("workflow", "profiles", "config"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "Snakefile", folder)
    shutil.copytree(checkpoint, folder / "checkpoint")
    project = Project(folder)
    project.write_matrix({"tiny": ENTRY})
    return project


def write_checkpoint(folder: Path) -> None:
    """Saves a random llama with transformers. Its weights are larger than 1 MB, because Snakemake compares checksums
    instead of mtimes for smaller files."""
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def train_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def write_wheel(folder: Path, member: str, content: bytes) -> None:
    """Writes the wheel llm-tiny 0.1, which contains one file."""
    with zipfile.ZipFile(folder / "llm_tiny-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("llm_tiny-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1\n")
        wheel.writestr("llm_tiny-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_tiny-0.1.dist-info/RECORD", "")


def only_wheels_in(folder: Path) -> dict[str, str]:
    """The environment with which pip finds only the wheels in `folder`."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
