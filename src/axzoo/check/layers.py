"""Check level 1 of the decoder layers, which answers two questions about each file.

*Is the file right?* Its weights are compared with the checkpoint's by what their format may change, and its results
with those of the oracle on the file's own weights. Differences are rounding, so the limits hold for every model.

*What did quantization cost?* The results are compared with those of the oracle on the checkpoint's weights.

The input of a layer is what the file before it returned for the entry's prompt, followed by seeded random tokens up to
the end of the first prefill chunk. A file whose graph no earlier file had also reads a sequence that is long enough for
every shape group, and probes: single tokens that are small enough for the epsilon of the norms to matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from axzoo.backends.host.contents import read_contents
from axzoo.check.closeness import Closeness, closeness, context_noise
from axzoo.check.compared_weights import LAYER_CODES, ComparedWeights, Storage
from axzoo.check.cost import Cost, cost_of
from axzoo.check.layer_run import LayerFile, Probe, Rows
from axzoo.check.stored_weights import StoredWeights
from axzoo.core.errors import AxzooError
from axzoo.model.oracle import Oracle, Weights, add_branches, attend, is_masked, layer, norm, projections
from axzoo.model.spec import LayerSpec
from axzoo.parts.groups import layer_groups
from axzoo.runtime.buffers import Embedding
from axzoo.runtime.bundle_folder import ModelFiles
from axzoo.runtime.engine import InferenceSession
from axzoo.runtime.threads import threads
from axzoo.tokenizer.local import LocalTokenizer
from axzoo.weights.formats import Thresholds, is_calibrated
from axzoo.weights.recipe import Recipe

Array = NDArray[Any]

SEED = 17
"""The seed of the tokens after the prompt, of the sampled rows and of the probes."""

COMPARED_AT_ONCE = 2
"""Files that are compared with the oracle at once, while the next one is run. It bounds the memory that they take."""

PROMPT_ROWS = 16
"""Rows of the prompt that are compared with the oracle on the stored weights, spread evenly."""

RANDOM_ROWS = 2
"""Rows of every call that are compared, besides its first two and its last two."""


def prompt_ids(tokenizer: LocalTokenizer, prompt: str, chat: bool) -> list[int]:
    """Token ids of the prompt, as the user message of the chat template if `chat`, else unchanged."""
    return tokenizer.encode_chat([{"role": "user", "content": prompt}]) if chat else tokenizer.encode(prompt)


@dataclass(frozen=True)
class LayerCheck:
    """The check of one layer's file.

    `faults` says why the file is not right; it is empty if it is. `groups` are the shape groups that it ran, and
    `same_graph_as` the layer whose file has the same graph and ran all of them, if this one did not. `closeness` is the
    worst comparison with the oracle on the stored weights. `decode` and `prefill` are what quantization costs;
    `prefill` is None in a decode-only build, both are None if the file cannot be run.
    """

    layer: int
    faults: tuple[str, ...]
    groups: tuple[int, ...] = ()
    same_graph_as: int | None = None
    closeness: Closeness | None = None
    decode: Cost | None = None
    prefill: Cost | None = None

    def exceeds(self, thresholds: Thresholds) -> list[str]:
        """The limits of level 1 that the cost of quantization exceeds."""
        found = (cost.exceeds(thresholds) for cost in (self.decode, self.prefill) if cost)
        return list(dict.fromkeys(name for names in found for name in names))


def check_layers(files: ModelFiles, oracle: Oracle, ids: Sequence[int], recipe: Recipe) -> Iterator[LayerCheck]:
    """Checks the layers in order, a few in memory at a time. `oracle` has the checkpoint's weights.

    Limit torch to one thread per operation, because operations are small and layers are compared in parallel.

    Raises AxzooError when the prompt is empty or does not fit the context.
    """
    if not ids:
        raise AxzooError("level 1 needs a prompt of at least one token: use another one")
    embedding = Embedding(files.embedding, files.vocab_size, files.hidden_size, scale=files.embedding_scale)
    return _LayerChecks(oracle, recipe, embedding, list(ids)).run(files)


class _LayerChecks:
    """Runs the files, one after the other, and compares each with the oracle while the next ones are run."""

    def __init__(self, oracle: Oracle, recipe: Recipe, embedding: Embedding, ids: list[int]) -> None:
        self._oracle, self._recipe, self._ids = oracle, recipe, ids
        self._rng = np.random.default_rng(SEED)
        longest = min(recipe.max_prompt_len, recipe.kv_cache_len)
        tail = self._rng.integers(0, embedding.vocab_size, max(0, longest - len(ids))).tolist()
        self._chain_length = max(len(ids), min(recipe.prefill_len, recipe.kv_cache_len))
        self._long = embedding.rows([*ids, *tail]).astype(_NUMPY[recipe.hidden_state_type])
        self._given = self._long[: self._chain_length]
        self._graphs: dict[str, int] = {}

    def run(self, files: ModelFiles) -> Iterator[LayerCheck]:
        pending: deque[Future[LayerCheck]] = deque()
        with ThreadPoolExecutor(min(COMPARED_AT_ONCE, threads())) as pool:
            for index, path in enumerate(files.layers):
                pending.append(pool.submit(self._run_file(index, path)))
                if len(pending) > COMPARED_AT_ONCE:
                    yield pending.popleft().result()
            for future in pending:
                yield future.result()

    def _run_file(self, index: int, path: Path) -> Callable[[], LayerCheck]:
        """Runs the file of a layer on the output of the one before. Returns a function that judges its results."""
        spec, expected = (
            self._oracle.spec.layer_spec(index),
            layer_groups(self._oracle.spec.layer_spec(index), self._recipe),
        )
        try:
            session = InferenceSession(path)
            contents = read_contents(path)
            if contents.header.groups != expected:
                raise AxzooError(f"{path.name} has shape groups that do not match the recipe")
        except AxzooError as error:
            return partial(LayerCheck, index, (str(error),))
        weights = ComparedWeights(contents, self._oracle.layer_weights(index), storage_of(self._recipe))
        first = self._graphs.setdefault(contents.structure(weights.names()) + repr(spec), index)
        given = self._given
        sequence = given if first != index else self._long if index == 0 else self._lengthened(given)
        run = _read(LayerFile(session), spec, sequence, len(self._ids), first == index, self._rng)
        output = run.output[: self._chain_length]
        self._given = output if np.isfinite(output.astype(np.float32)).all() else given

        def judged() -> LayerCheck:
            decode, prefill = self._costs(spec, run, weights)
            faults, worst = weights.faults(), None
            if weights.is_usable:
                stored = StoredWeights(contents)
                worst, found = _compare(spec, stored, run, self._oracle.max_length, self._recipe.hidden_state_type)
                faults += found
            if missed := sorted(set(range(len(expected))) - run.groups if first == index else ()):
                faults.append(f"shape groups {missed} were not run")
            same = None if first == index else first
            return LayerCheck(index, tuple(faults), tuple(sorted(run.groups)), same, worst, decode, prefill)

        return judged

    def _lengthened(self, given: Array) -> Array:
        """`given`, followed by copies of its rows in random order, as long as the longest sequence."""
        more = len(self._long) - len(given)
        if more <= 0:
            return given
        return np.concatenate([given, given[self._rng.integers(0, len(given), more)]])

    def _costs(self, spec: LayerSpec, run: _Run, weights: Weights) -> tuple[Cost, Cost | None]:
        """What quantization costs after decode and after prefill, compared with the checkpoint's `weights`."""
        count = len(self._ids)
        given = _fp32(run.given[:count])
        with torch.inference_mode():
            want, _ = layer(spec, weights, given, None, self._oracle.max_length)
        x, got = given * spec.input_scale, torch.from_numpy(run.output[:count].astype(np.float32))
        state = self._recipe.hidden_state_type
        prefilled = count - 1 if run.decoded is not None else 0
        if run.decoded is not None:
            got[-1] = torch.from_numpy(run.decoded.output[0].astype(np.float32))
        decode = cost_of(x[prefilled:], got[prefilled:], want[prefilled:], state, prefilled)
        return decode, cost_of(x[:prefilled], got[:prefilled], want[:prefilled], state) if prefilled else None


_NUMPY: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def storage_of(recipe: Recipe) -> Storage:
    """How the recipe stores the matrices of a layer."""
    kind = recipe.weight_type
    searched, calibrated = recipe.scale_rule != Recipe.scale_rule, is_calibrated(recipe)
    return Storage(kind, LAYER_CODES.get(kind), recipe.weight_group_size, searched, calibrated)


@dataclass(frozen=True)
class _Run:
    """What a file returned: the calls that read the sequence, the last token of the prompt decoded again after prefill,
    and the probes."""

    calls: list[Rows]
    decoded: Rows | None
    probes: list[Probe]
    groups: set[int]

    def part(self, name: str) -> Array:
        """A field of all calls, in the order of the tokens."""
        return np.concatenate([getattr(call, name) for call in self.calls])

    @property
    def given(self) -> Array:
        return self.part("given")

    @property
    def output(self) -> Array:
        return self.part("output")


def _read(
    file: LayerFile, spec: LayerSpec, sequence: Array, prompt: int, with_probes: bool, rng: np.random.Generator
) -> _Run:
    with np.errstate(all="ignore"):
        calls = file.read(sequence)
        probes = []
        if with_probes:
            keys, values = (np.concatenate([getattr(call, name) for call in calls]) for name in ("keys", "values"))
            probes = _probes(file, spec, sequence, keys, values, rng)
        decoded = None
        if file.geometry.prefill_groups and prompt <= file.geometry.max_token_len:
            decoded = file.decode_again(sequence[prompt - 1 : prompt], prompt - 1)
    return _Run(calls, decoded, probes, file.groups_run)


def _probes(
    file: LayerFile, spec: LayerSpec, sequence: Array, keys: Array, values: Array, rng: np.random.Generator
) -> list[Probe]:
    """Decode steps that the prompt does not reach: at the end of a full cache, and with inputs so small that the
    epsilons of the norms change the result by a third."""
    last = file.geometry.max_token_len - 1
    slots = np.arange(last) % len(keys)  # a sequence that does not fill the cache is repeated
    found = [file.probe(sequence[-1:], last, keys[slots], values[slots])]
    direction = rng.standard_normal((1, sequence.shape[1]))
    nothing = np.zeros((1, keys.shape[1]), keys.dtype)
    # Without attention to itself, a token that sees a value of zero passes unchanged to the second norm.
    small = direction * spec.norm.eps**0.5 / spec.input_scale
    found.append(file.probe(small.astype(sequence.dtype), 0, nothing, nothing, sees_itself=False))
    if spec.qk_norm:
        tiny = direction * spec.norm.eps / spec.input_scale
        found.append(file.probe(tiny.astype(sequence.dtype), last, keys[slots], values[slots]))
    return found


def _compare(
    spec: LayerSpec, weights: Weights, run: _Run, max_length: int, state: str
) -> tuple[Closeness | None, list[str]]:
    """Compares a sample of the run with the oracle on `weights`. Returns the worst comparison, and what is wrong."""
    samples = _samples(run)
    everything = (*run.calls, *([run.decoded] if run.decoded else ()), *(probe.rows for probe in run.probes))
    for rows in everything:
        for name in ("keys", "values", "output"):
            if not np.isfinite(getattr(rows, name).astype(np.float32)).all():
                return None, [f"{name} of shape group {rows.group} are not finite"]
    keys, values, masked = _context(spec, run, samples)
    x = _fp32(np.concatenate([rows.given for rows in samples]))
    positions = torch.from_numpy(np.concatenate([rows.positions for rows in samples]))
    heads = (-1, spec.num_key_value_heads, spec.head_dim)
    with torch.inference_mode():
        x = x * spec.input_scale
        normed = norm(spec.norm, weights, x, "input_norm")
        q, k, v = projections(spec, weights, normed, positions, max_length)
        keys, values = keys.view(heads), values.view(heads)
        context = attend(spec, q, keys, values, masked)
        shaken = context + context_noise(spec, q, keys, values, masked, context) * _signs(context)
        both = add_branches(spec, weights, x.repeat(2, 1), normed.repeat(2, 1), torch.cat([context, shaken]))
        out, moved = both.chunk(2)
    from_scores = (moved - out).abs().amax(1, keepdim=True)
    wanted = {"keys": k.flatten(1), "values": v.flatten(1), "output": out}
    found = []
    faults = []
    groups = np.concatenate([np.full(len(rows), rows.group) for rows in samples])
    for name, want in wanted.items():
        got = _fp32(np.concatenate([getattr(rows, name) for rows in samples]))
        scale = (want - x).abs().amax(1) if name == "output" else want.abs().amax(1)
        close = closeness(got, want, scale, state, from_scores if name == "output" else 0.0)
        found.append(close)
        if not close.is_close:
            place = f"position {int(positions[close.row])} of shape group {groups[close.row]}"
            share = "" if close.flipped is None else f", {close.flipped:.1%} of the numbers round differently"
            faults.append(
                f"{name} differ from the oracle's on the same weights: {close.worst:.1f} times the allowed error at "
                f"{place}{share}"
            )
    return max(found, key=lambda close: close.worst), faults


def _signs(like: Tensor) -> Tensor:
    """Seeded random signs."""
    return torch.randint(0, 2, like.shape, generator=torch.Generator().manual_seed(SEED)) * 2.0 - 1


def _samples(run: _Run) -> list[Rows]:
    """The rows that are compared: of every call the first two, the last two and random ones, and the single tokens."""
    rng = np.random.default_rng(SEED)
    chosen = []
    for number, call in enumerate(run.calls):
        count = len(call)
        rows = {0, 1, count - 2, count - 1, *rng.integers(0, count, RANDOM_ROWS).tolist()}
        rows |= set(np.linspace(0, count - 1, PROMPT_ROWS).astype(int).tolist()) if number == 0 else set()
        index = sorted(row for row in rows if 0 <= row < count)
        parts = (part[index] for part in (call.positions, call.given, call.keys, call.values, call.output))
        chosen.append(Rows(call.group, *parts))
    return [*chosen, *([run.decoded] if run.decoded else ()), *(probe.rows for probe in run.probes)]


def _context(spec: LayerSpec, run: _Run, samples: list[Rows]) -> tuple[Tensor, Tensor, Tensor]:
    """The keys and values [m, kv_size] that any sampled row may see, as the file returned them, and which of them each
    row must not see: bool [n, m].

    The columns are the tokens of the sequence, then for every single token its own row and its probe's cache.
    """
    keys, values = [run.part("keys")], [run.part("values")]
    length = len(keys[0])
    positions = np.concatenate([rows.positions for rows in samples])
    columns = [is_masked(spec, torch.from_numpy(positions), torch.arange(length))]
    single = ([Probe(run.decoded, keys[0][:0], values[0][:0])] if run.decoded else []) + run.probes
    for number, probe in enumerate(single):
        row = len(positions) - len(single) + number
        position = int(positions[row])
        if probe.rows is run.decoded:
            columns[0][row, position] = True  # its own row is a new one
        else:
            columns[0][row] = True
        cached = torch.arange(len(probe.cached_keys))
        own = torch.ones((len(positions), 1 + len(cached)), dtype=torch.bool)
        own[row, 0] = not probe.sees_itself
        own[row, 1:] = is_masked(spec, torch.tensor([position]), cached)[0]
        columns.append(own)
        keys += [probe.rows.keys, probe.cached_keys]
        values += [probe.rows.values, probe.cached_values]
    return _fp32(np.concatenate(keys)), _fp32(np.concatenate(values)), torch.cat(columns, 1)


def _fp32(array: Array) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
