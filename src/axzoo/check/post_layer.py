"""Check level 1 of the post layer and of the embedding: whether their files are right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axzoo.backends.host.contents import read_contents
from axzoo.check.closeness import Closeness, closeness
from axzoo.check.compared_weights import POST_CODES, ComparedWeights, Storage
from axzoo.check.layers import SEED
from axzoo.check.stored_weights import StoredWeights
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.core.files import open_regular
from axzoo.model.oracle import StreamedWeights, Weights, norm, project
from axzoo.model.spec import PostSpec
from axzoo.parts.groups import post_groups
from axzoo.parts.kinds.embed import WEIGHT as EMBEDDING
from axzoo.runtime.engine import InferenceSession
from axzoo.weights.recipe import Recipe

TOKENS = 4
"""Random hidden states that the post layer reads, and one small enough for the epsilon of its norm to matter."""

TOPK_ERROR = 1e-3
"""Relative error of probabilities."""


@dataclass(frozen=True)
class FileCheck:
    """The check of the post layer or the embedding: `faults` says why the file is not right; empty if it is."""

    file: str
    faults: tuple[str, ...]
    closeness: Closeness | None = None


def check_embedding(path: Path, weights: StreamedWeights) -> FileCheck:
    """Compares every row of the table with the checkpoint's `weights`, rounded to bf16."""
    rows, columns = weights.shape(EMBEDDING)
    if not path.is_file() or path.stat().st_size != 2 * rows * columns:
        return FileCheck(path.name, (f"{path.name} does not hold {rows} rows of {columns} bf16 numbers",))
    wrong = []
    with open_regular(path) as file:  # not mapped: its pages would count as memory of this process
        for block in weights.rows(EMBEDDING):
            found = np.frombuffer(bytearray(file.read(2 * block.numel())), np.int16).reshape(block.shape)
            wrong.append((torch.from_numpy(found).view(torch.bfloat16) != block.bfloat16()).any(1))  # NaN differs
    differing = torch.cat(wrong).nonzero()[:, 0]
    if not len(differing):
        return FileCheck(path.name, ())
    text = f"{len(differing)} of {rows} rows differ from the checkpoint's, the first is {int(differing[0])}"
    return FileCheck(path.name, (text,))


def check_post(path: Path, weights: Weights, spec: PostSpec, recipe: Recipe) -> FileCheck:
    """Compares the weights of the post layer with the checkpoint's `weights`, and its results with those of the oracle
    on the stored weights."""
    try:
        contents, session = read_contents(path), InferenceSession(path)
    except AxzooError as error:
        return FileCheck(path.name, (str(error),))
    if contents.header.groups != post_groups(spec, recipe):
        return FileCheck(path.name, (f"{path.name} has shape groups that do not match the recipe",))
    given = _states(spec, recipe)
    names = [tensor.name for tensor in session.get_outputs()]
    with np.errstate(all="ignore"):
        runs = [session.run(names, {"input": row[None, None]}) for row in given]
    got = {name: np.concatenate([run[i][0] for run in runs]) for i, name in enumerate(names)}
    del session
    compared = ComparedWeights(
        contents, weights, Storage(recipe.post_weight_type, POST_CODES.get(recipe.post_weight_type))
    )
    faults = compared.faults()
    if not compared.is_usable:
        return FileCheck(path.name, tuple(faults))
    stored = StoredWeights(contents)
    with torch.inference_mode():
        normed = norm(spec.norm, stored, torch.from_numpy(given.astype(np.float32)), "norm")
        logits = project(stored, "lm_head", normed * spec.logit_scale)
    close, found = _compare(got, logits, normed, recipe)
    return FileCheck(path.name, (*faults, *found), close)


def _states(spec: PostSpec, recipe: Recipe) -> NDArray[Any]:
    """Hidden states [n, hidden_size] for the post layer."""
    states = np.random.default_rng(SEED).standard_normal((TOKENS + 1, spec.hidden_size))
    states[-1] *= spec.norm.eps**0.5
    return states.astype(NUMPY_DTYPES[recipe.hidden_state_type])


def _compare(
    got: dict[str, NDArray[Any]], logits: Tensor, normed: Tensor, recipe: Recipe
) -> tuple[Closeness | None, list[str]]:
    """Compares outputs by name [n, width] with the oracle's logits [n, vocab_size] and normalized hidden state."""
    faults, found = [], []
    for name, want in (("output", logits), ("postnorm", normed)):
        if name in got:
            results = torch.from_numpy(got[name].astype(np.float32))
            found.append(closeness(results, want, want.abs().amax(1), recipe.hidden_state_type))
            if not found[-1].is_close:
                faults.append(
                    f"{name} differs from the oracle's on the same weights by {found[-1].worst:.1f} times the allowed "
                    "error"
                )
    if "prob" in got:
        want = logits.softmax(-1)
        indices, prob = torch.from_numpy(got["indices"].astype(np.int64)), torch.from_numpy(got["prob"])
        valid = bool(((indices >= 0) & (indices < want.shape[1])).all())
        best = want.topk(indices.shape[1]).values
        chosen = want.gather(1, indices) if valid else torch.full_like(best, torch.nan)
        right = ((chosen - best).abs() <= TOPK_ERROR * best) & ((prob - chosen).abs() <= TOPK_ERROR * best)
        if not bool(right.all()):
            faults.append("the most probable tokens differ from the oracle's on the same weights")
    return max(found, key=lambda close: close.worst, default=None), faults
