"""The summary of a build for `axzoo report`, from its manifest and check reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.bundle.boards.host_files import host_notes
from axzoo.check.verdict import failed_report, worst_cosine
from axzoo.core.files import read_json

if TYPE_CHECKING:
    from axzoo.matrix.build import Build
    from axzoo.matrix.chips import ChipTable


def summarize_build(build: Build, chips: ChipTable) -> list[tuple[str, str]]:
    """The summary as (label, text) pairs: the forecast, the bundle, hosts that cannot use it, the verdict of each
    check, prompt and answer.

    A build that is left out has a single pair with the reason and what would fit. Of a build that is not built yet, the
    forecast is known at most.
    """
    from axzoo.matrix.forecasts import forecast_line
    from axzoo.matrix.preflight import misfit_with_advice

    if build.misfit is not None:
        return [("left out", misfit_with_advice(build, chips))]
    expected = forecast_line(build)
    forecast = [] if expected is None else [("forecast", expected)]
    manifest = _read(build.bundle / "manifest.json")
    if manifest is None:
        return [*forecast, ("bundle", f"not built: snakemake --cores all {build.bundle / 'manifest.json'}")]
    size = sum(file["size"] for file in manifest["files"].values())
    lines = [*forecast, ("bundle", f"{build.bundle} ({len(manifest['files'])} files, {size / 1e6:.1f} MB)")]
    boards = manifest.get("boards")
    if isinstance(boards, dict) and "tokenizer_txt" in boards:
        lines.append(("tokenizer.txt", _tokenizer_txt(boards["tokenizer_txt"])))
    if isinstance(boards, dict) and "hosts" in boards:
        lines.append(("boards", _hosts(boards["hosts"])))
    if isinstance(boards, dict) and (chosen := boards.get("axllm", {}).get("template", {}).get("tokenizer_type")):
        lines.append(("axllm", _template(chosen, boards["axllm"]["template"])))
    lines += [("boards", note) for note in host_notes(boards)]
    if not build.backend.runs_here:
        return [*lines, ("weights", _weights(build))]
    layers, generation = (_verdict_in(build.checks / name) for name in ("layers.json", "generation.json"))
    lines.append(("level 1", "not checked" if layers is None else _level_1(layers)))
    if generation is None:
        return [*lines, ("level 2", "not checked")]
    return [
        *lines,
        ("level 2", _level_2(generation)),
        ("prompt", build.prompt),
        ("answer", generation["answer"].strip()),
        ("talk", f'axzoo run {build.bundle} --prompt "{build.prompt}"'),
    ]


def _weights(build: Build) -> str:
    """How many files of a build for boards hold the checkpoint's weights."""
    if not build.backend.proves_weights:
        return f"not compared: files of backend {build.backend_name} run only on a board"
    verdict = _verdict_in(build.checks / "weights.json")
    if verdict is None:
        return "not checked"
    if not verdict["passed"]:
        return f"FAILED: {'; '.join(verdict['failures'][:3])}"
    return f"{verdict['proven']} of {len(verdict['files'])} files hold the checkpoint's weights"


def _hosts(entry: Any) -> str:
    """Which hosts load the bundle: as it is, after `axzoo package`, or not."""
    words = {"yes": "loaded by", "package": "after `axzoo package` by", "no": "not by"}
    named = {
        text: [host for host, verdict in entry.items() if verdict["loads"] == word] for word, text in words.items()
    }
    return "; ".join(f"{text} {', '.join(hosts)}" for text, hosts in named.items() if hosts)


def _template(name: str, entry: Any) -> str:
    """How far axllm's chat template agrees with the checkpoint's own."""
    differs = f"; other prompts for {', '.join(entry['differs'])}" if entry["differs"] else ""
    return f"chat template {name}, {entry['agreement']}{differs}"


def _tokenizer_txt(entry: Any) -> str:
    """How many of the model's token ids a board yields, by the kind of text."""
    if "not_available" in entry:
        return f"not available: {entry['not_available']}"
    chats, of = entry["equal_chats"]
    differs = ", ".join(f"{kind} {100 * entry['equal_ids'][kind]:.2f} %" for kind in entry["differs"])
    text = f"kind {entry['kind']}, family {entry['family']}: "
    text += (
        f"on boards, {differs} of the token ids are the model's" if differs else "boards yield the model's token ids"
    )
    return (
        text
        + (f"; {chats} of {of} conversations are equal" if chats < of else "")
        + "".join(f"; {note}" for note in entry["notes"])
    )


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _verdict_in(path: Path) -> Any:
    """The report of a check that passed or failed, or None if it has not run."""
    return _read(path) or _read(failed_report(path))


def _level_1(check: Any) -> str:
    worst = worst_cosine(check)
    cost = "" if worst is None else f", worst token's cosine {_number(worst[0])} in layer {worst[1]}"
    return f"{_verdict(check)}: {len(check['layers'])} layers against fp32{cost}{_remarks(check)}"


def _level_2(check: Any) -> str:
    end = "hit eos" if check["hit_eos"] else "no eos"
    return (
        f"{_verdict(check)}: {len(check['steps'])} tokens, {end}, top-1 agreement with fp32 "
        f"{check['top1_agreement']:.3f}, mean KL {_number(check['mean_kl'])}{_remarks(check)}"
    )


def _remarks(check: Any) -> str:
    """What failed, or which thresholds the cost of quantization exceeds."""
    if not check["passed"]:
        failures = check.get("failures", [])
        return (
            f"; {failures[0]}" + (f" (and {len(failures) - 1} more)" if len(failures) > 1 else "") if failures else ""
        )
    return "".join(f"; WARNING: {warning}" for warning in check.get("warnings", []))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.5f}"


def _verdict(check: Any) -> str:
    return "passed" if check["passed"] else "FAILED"
