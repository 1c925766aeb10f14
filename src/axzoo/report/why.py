"""The output of `axzoo why`: the jobs that a build would run, with reasons from Snakemake's plan and the tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axzoo.backends import DEFAULT
from axzoo.matrix.comparison import CHANGED, EDITED, MISSING, OUTDATED
from axzoo.matrix.document import read_document
from axzoo.parts.lock import Lock, make_lock
from axzoo.parts.part import read_part
from axzoo.report.events import PlannedJob, Reason, planned_jobs

if TYPE_CHECKING:
    from axzoo.matrix.build import Build

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
_CODE = ("code", "rounder")
"""Names under which identities of compilers record code."""
_UNSET = "unset"
_FILES = {
    "missing_output": "missing",
    "incomplete_output": "incomplete, its last job was interrupted",
    "updated_input": "changed",
    "updated_input_run": "will be rebuilt",
    MISSING: "missing",
    EDITED: "not what was built",
    CHANGED: "changed",
    OUTDATED: "built from other inputs",
}
_PLAIN = {
    "code_changed": "its command changed",
    "software_stack_changed": "its software environment changed",
    "noio": "it has neither inputs nor outputs",
    "nooutput": "it has no outputs",
}


def explain(targets: Sequence[str], matrix: Path | None, *, hash_checkpoints: bool = False) -> Iterator[str]:
    """The lines of `axzoo why`: each job that a build of `targets` would run, with its reasons.

    With `hash_checkpoints`, local checkpoints that would be fetched or locked again are hashed, and changed tensors are
    named. Raises AxzooError when the matrix or a checkpoint is not valid, or when Snakemake cannot make a plan.
    """
    if matrix is not None:
        read_document(matrix)  # reports the line of an error; Snakemake's own reader ends with a traceback
    jobs = planned_jobs(targets, matrix)
    if not jobs:
        yield "nothing to do: everything is up to date"
    for job in jobs:
        yield f"{job.rule}: {job.file}"
        yield from (f"    {line}" for line in describe_reasons(job))
    if hash_checkpoints:
        models = {job.wildcards["model"] for job in jobs if job.rule in ("fetch", "lock")}
        for build in _builds_of(models, matrix):
            yield from (f"{build.model}: {line}" for line in tensor_changes(build))


def describe_reasons(job: PlannedJob) -> list[str]:
    """Why a job runs, as lines of text."""
    if job.awaits and {reason.kind for reason in job.reasons} == {"updated_input_run"}:
        return ["only if the lock, which runs first, finds that its tensors changed"]
    return [line for reason in job.reasons for line in describe_reason(reason)]


def describe_reason(reason: Reason) -> list[str]:
    """A single reason as one or more lines of text."""
    if reason.kind == "params_changed":
        return changed_params(reason.before, reason.now)
    if reason.kind == "input_changed":
        sides = (("added", reason.now), ("removed", reason.before))
        changes = [f"{label} {_abbreviate(files)}" for label, files in sides if files]
        return ["the set of its input files changed" + (f": {'; '.join(changes)}" if changes else "")]
    if reason.kind in _FILES:
        return [f"{_FILES[reason.kind]}: {_abbreviate(reason.files)}"]
    return [_PLAIN.get(reason.kind, reason.kind.replace("_", " "))]


def changed_params(before: Sequence[Any], now: Sequence[Any]) -> list[str]:
    """Describe how a job's params changed. `before` are the values only in the last run, `now` those only in this run.

    Option lists and JSON objects are compared name by name. A changed fingerprint means that axzoo's code changed.
    """
    old, new = _named(before), _named(now)
    changed = [(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]
    arguments = [f"{name} {_shown(was)} -> {_shown(value)}" for name, was, value in changed if name not in _CODE]
    unnamed = [[value for value in _unnamed(side) if not _is_fingerprint(value)] for side in (before, now)]
    if any(unnamed):
        arguments.append(" -> ".join(", ".join(map(_shown, side)) or _UNSET for side in unnamed))
    lines = [f"its arguments changed: {', '.join(arguments)}"] if arguments else []
    code_changed = any(_is_fingerprint(value) for value in (*_unnamed(before), *_unnamed(now)))
    code_changed |= any(name in _CODE for name, _, _ in changed)
    backend = new.get("backend", DEFAULT)
    owner = "the axzoo code" if backend == DEFAULT else f"the code of backend {backend} or axzoo"
    return lines + ([f"{owner} that it depends on changed"] if code_changed else [])


def changed_tensors(folder: Path, lock: Lock) -> list[str]:
    """Compare `lock` with the lock files in `folder`: one line for each changed part, with the names of its tensors."""
    lines = []
    for part in lock.parts:
        path = folder / part.id.lock_file
        if not path.exists():
            lines.append(f"{path} is new")
            continue
        before = read_part(path)
        changed = [tensor.name for role, tensor in part.tensors.items() if before.tensors.get(role) != tensor]
        if changed:
            lines.append(f"{path.stem}: {_abbreviate(changed)} changed")
        elif dict(before.spec) != dict(part.spec):
            lines.append(f"{path.stem}: its spec changed, because config.json did")
    return lines


def _builds_of(models: set[str], matrix: Path | None) -> list[Build]:
    """One build of each model."""
    from axzoo.matrix.plan import make_plan

    plan = make_plan([matrix or Path("config/zoo.yaml")], demo="config/demo.yaml")
    return list({build.model: build for build in (*plan.wanted, *plan.demo) if build.model in models}.values())


def tensor_changes(build: Build) -> list[str]:
    """The changes that locking the build's checkpoint again would find."""
    from axzoo.fetch.sources import RECEIPT, FolderSource, checkpoint_folder, is_complete

    receipt = build.checkpoint / RECEIPT
    if isinstance(build.source, FolderSource) and (Path(build.source.path) / "config.json").exists():
        folder = Path(build.source.path)
    elif not receipt.exists():
        return ["not fetched yet, so there is nothing to hash"]
    elif not is_complete(build.checkpoint, build.source):
        return ["fetched again first, so there is nothing to hash yet"]
    else:
        folder = checkpoint_folder(receipt)
    config = None if build.model_config is None else Path(build.model_config)
    lock = make_lock(
        folder,
        build.model_type,
        build.num_hidden_layers,
        build.ignore_config_keys,
        config,
        ignore_tensors=build.ignore_tensors,
    )
    return changed_tensors(build.locks, lock) or ["no tensor changed"]


def _named(values: Iterable[Any]) -> dict[str, Any]:
    """The values of all options and JSON objects in `values`, by name."""
    named: dict[str, Any] = {}
    for value in values:
        if isinstance(value, list) and _is_options(value):
            named |= _options(value)
        elif (found := _object(value)) is not None:
            named |= _flat(found)
    return named


def _unnamed(values: Iterable[Any]) -> list[Any]:
    return [v for v in values if v != [] and _object(v) is None and not (isinstance(v, list) and _is_options(v))]


def _is_options(words: list[Any]) -> bool:
    return bool(words) and isinstance(words[0], str) and words[0].startswith("--")


def _options(words: list[Any]) -> dict[str, Any]:
    """Options by name. Multiple values of an option are joined; a JSON object is replaced by its members."""
    given: dict[str, list[str]] = {}
    for word in map(str, words):
        if word.startswith("--"):
            name, has_value, value = word.removeprefix("--").partition("=")
            given[name] = [value] if has_value else []
        else:
            given[name].append(word)
    options: dict[str, Any] = {}
    for name, values in given.items():
        found = _object(values[0]) if len(values) == 1 else None
        options |= {name: " ".join(values) if values else True} if found is None else _flat(found)
    return options


def _object(value: Any) -> dict[str, Any] | None:
    """`value` as a JSON object, or None if it is not one."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _flat(data: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested objects; names become paths such as options.level."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and bool(_FINGERPRINT.fullmatch(value))


def _shown(value: Any) -> str:
    if value is None:
        return _UNSET
    return value if isinstance(value, str) else json.dumps(value)


def _abbreviate(names: Iterable[str], limit: int = 3) -> str:
    listed = list(names)
    rest = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest
