"""`axzoo vendor-trial`: what only an owner of the vendor's compiler can find out, as a report, and a folder for the
board.

The compiler builds a model of two layers twice, and one of the layers alone. If the weights of one layer, written into
the other layer's file, give the file that the compiler wrote, then the table was understood completely.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from axzoo import __version__
from axzoo.backends.part_job import PartFile, PartJob, build_parts
from axzoo.backends.pulsar2.board_trial import __file__ as BOARD_PROGRAM
from axzoo.backends.pulsar2.diagnosis import SAMPLE, write_sample
from axzoo.backends.pulsar2.settings import Settings
from axzoo.backends.pulsar2.tool import find_tool
from axzoo.backends.pulsar2.vendor_file import VendorFile, read_vendor_file
from axzoo.backends.pulsar2.weight_table import TableReading, filled, read_table
from axzoo.checkpoint import open_checkpoint
from axzoo.core.dtypes import NUMPY_DTYPES
from axzoo.core.errors import AxzooError
from axzoo.core.files import write_json
from axzoo.fetch.sources import RECEIPT
from axzoo.parts.kind import RowReader
from axzoo.parts.lock import make_lock, write_lock
from axzoo.parts.part import Part, read_part, verified_blocks
from axzoo.weights.recipe import Recipe

LAYERS = ("layer_0", "layer_1")
MASKED = -65536.0

_MODEL = SAMPLE | {"num_hidden_layers": 2}


@dataclass(frozen=True)
class TrialCheck:
    """One finding. `passed` is None if it could not be checked; `detail` says why, or what was found."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Trial:
    """A compiler, a chip and a weight type to try, in the private folder `work`."""

    settings: Settings
    chip: str
    recipe: Recipe
    work: Path

    def build(self, name: str, *layers: str) -> list[Path]:
        """Compiles layers in one run, and none of them from an earlier one."""
        folder, sample = self.work / name, self.work / "sample"
        files = [PartFile(self.locks / f"{n}.json", folder / f"{n}.axmodel", folder / f"{n}.json") for n in layers]
        store, settings = self.work / f"{name}-store", self.settings.to_json()
        build_parts(PartJob(files, sample / RECEIPT, store, self.recipe, "pulsar2", self.chip, None, settings))
        return [file.output for file in files]

    @property
    def locks(self) -> Path:
        return self.work / "locks"

    def reader(self, name: str) -> tuple[Part, RowReader]:
        """A layer's lock, and the reader of its tensors."""
        part, checkpoint = read_part(self.locks / f"{name}.json"), open_checkpoint(self.work / "sample")
        return part, lambda role: verified_blocks(checkpoint, part.tensors[role])


def run_trial(trial: Trial, output: Path, tell: Callable[[TrialCheck], None]) -> dict[str, Any]:
    """Runs the checks of the build machine, tells each, and writes `output`/report.json and `output`/board.

    Returns the report. A check that fails is a finding. Raises AxzooError when the compiler does not work.
    """
    tool = find_tool(trial.settings)
    write_sample(trial.work / "sample", _MODEL)
    write_lock(make_lock(trial.work / "sample", "llama", 2), trial.locks, trial.work / "sample", {})
    paths = trial.build("both", *LAYERS)
    files = [read_vendor_file(path) for path in paths]
    again = [read_vendor_file(path) for path in trial.build("again", *LAYERS)]
    (alone,) = map(read_vendor_file, trial.build("alone", LAYERS[1]))
    checks = []
    board = output / "board"
    for check in _checks(trial, files, again, alone, board):
        tell(check)
        checks.append(check)
    _prepare_board(paths, files, board)
    report = {
        "format": 1,
        "axzoo": __version__,
        "tool": {"name": tool.name, "version": tool.version, "says": files[0].version, "chips": list(tool.chips)},
        "launcher": trial.settings.launcher,
        "options": list(trial.settings.options),
        "environment": dict(trial.settings.environment),
        "chip": trial.chip,
        "recipe": trial.recipe.to_dict(),
        "model": _MODEL,
        "checks": [{"name": check.name, "passed": check.passed, "detail": check.detail} for check in checks],
    }
    write_json(output / "report.json", report)
    return report


def _checks(
    trial: Trial, files: list[VendorFile], again: list[VendorFile], alone: VendorFile, board: Path
) -> Iterator[TrialCheck]:
    same = [bytes(a.table) == bytes(b.table) for a, b in zip(files, again, strict=True)]
    yield TrialCheck("a second build has the same tables", all(same), f"{sum(same)} of {len(same)} layers")
    yield TrialCheck(
        "a layer built alone has the table that it has among others",
        bytes(alone.table) == bytes(files[1].table),
        f"{len(alone.table)} and {len(files[1].table)} bytes",
    )
    readings: list[TableReading | None] = []
    for name, file in zip(LAYERS, files, strict=True):
        part, read = trial.reader(name)
        try:
            reading: TableReading | None = read_table(file.table, part.shapes, read)
        except AxzooError as error:
            reading, faults = None, [str(error)]
        else:
            faults = reading.all_faults if reading else []
        readings.append(reading)
        found = "; ".join(_forms(reading)) if reading else ""
        yield TrialCheck(f"every weight of {name} is in its table", not faults, "; ".join(faults[:3]) or found)
    for source, target in ((1, 0), (0, 1)):
        yield _transfer(trial, files, readings, source, target, board)
    between, rebuilt = _program_noise(files[0], files[1]), _program_noise(files[0], again[0])
    yield TrialCheck(
        "programs of two layers differ no more than those of two builds of one layer",
        between <= 2 * rebuilt + 16,
        f"{between} bytes between layers, {rebuilt} between builds",
    )


def _forms(reading: TableReading) -> Iterator[str]:
    """How each matrix is stored."""
    for role, matrix in reading.matrices.items():
        if matrix.form is not None:
            layout, rule = matrix.form.layout, f", rule {matrix.form.rule}" if matrix.form.rule else ""
            yield f"{role}: {layout.weight_type}{rule}, {layout.rows} rows per block"


def _transfer(
    trial: Trial, files: list[VendorFile], readings: list[TableReading | None], source: int, target: int, board: Path
) -> TrialCheck:
    """Writes the weights of layer `source` into the table of layer `target`."""
    name, reading = f"layer {source}'s weights in layer {target}'s table give layer {source}'s table", readings[target]
    if reading is None:
        return TrialCheck(name, None, "the table could not be read")
    try:
        made = filled(files[target].table, reading, trial.reader(LAYERS[source])[1])
    except AxzooError as error:
        return TrialCheck(name, None, str(error))
    if source == 1:
        board.mkdir(parents=True, exist_ok=True)
        (board / "made_layer_1.axmodel").write_bytes(_with_table(files[target], made))
    wanted = files[source].table
    differing = (
        int((np.frombuffer(made, np.uint8) != np.frombuffer(wanted, np.uint8)).sum())
        if len(made) == len(wanted)
        else max(len(made), len(wanted))
    )
    return TrialCheck(name, not differing, f"{differing} of {len(wanted)} bytes differ")


def _with_table(file: VendorFile, table: bytes) -> bytes:
    content = bytearray(file.path.read_bytes())
    content[file.offset : file.offset + len(table)] = table
    return bytes(content)


def _program_noise(one: VendorFile, other: VendorFile) -> int:
    """The bytes outside of the tables in which two files differ, without the layer's number in names."""
    contents = [
        np.frombuffer(content[: file.offset] + content[file.offset + len(file.table) :], np.uint8)
        for file in (one, other)
        for content in [file.path.read_bytes()]
    ]
    size = min(map(len, contents))
    digits = [np.isin(content[:size], (ord("0"), ord("1"))) for content in contents]
    differs = (contents[0][:size] != contents[1][:size]) & ~(digits[0] & digits[1])
    return int(differs.sum()) + abs(len(contents[0]) - len(contents[1]))


def _prepare_board(paths: list[Path], files: list[VendorFile], board: Path) -> None:
    """The compiler's files, inputs of every shape group, and the program that compares their outputs on a board."""
    board.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        shutil.copyfile(path, board / f"layer_{number}.axmodel")
    shutil.copyfile(BOARD_PROGRAM, board / "board_trial.py")
    described: list[dict[str, Any]] = []
    for number, values in enumerate(_inputs(files[0])):
        tensors = {}
        for name, (dtype, array) in values.items():
            file = f"group_{number}_{name}.bin"
            (board / file).write_bytes(array.tobytes())
            tensors[name] = {"file": file, "dtype": dtype, "shape": list(array.shape)}
        described.append(tensors)
    write_json(board / "inputs.json", described)


def _inputs(file: VendorFile) -> Iterator[Mapping[str, tuple[str, NDArray[Any]]]]:
    """Inputs as a host program gives them: hidden states of usual size, valid positions, masks with open slots, caches
    with zeros where nothing is."""
    generator = np.random.default_rng(0)
    for group in file.groups:
        shapes = {tensor.name: tuple(int(length) for length in tensor.shape) for tensor in group.inputs}
        tokens, slots = shapes["indices"][-1], shapes["mask"][-1]
        past = slots - tokens
        used = past // 2 if tokens == 1 else past
        mask = np.full(shapes["mask"], MASKED, np.float32)
        mask[..., :used] = 0
        mask[..., past:] = np.where(np.tri(tokens, dtype=bool), 0, MASKED)
        values: dict[str, NDArray[Any]] = {
            "indices": np.broadcast_to(np.arange(used, used + tokens), shapes["indices"]),
            "input": generator.standard_normal(shapes["input"]),
            "mask": mask,
        }
        for name in ("K_cache", "V_cache"):
            cache = np.zeros(shapes[name])
            if shapes[name][1] == past:
                cache[:, :used] = generator.standard_normal((1, used, shapes[name][2]))
            values[name] = cache
        yield {
            tensor.name: (tensor.dtype, np.ascontiguousarray(values[tensor.name].astype(NUMPY_DTYPES[tensor.dtype])))
            for tensor in group.inputs
        }


def clean(folder: Path) -> None:
    """Removes the results of an earlier trial."""
    with suppress(FileNotFoundError):
        shutil.rmtree(folder / "board")
    (folder / "report.json").unlink(missing_ok=True)
