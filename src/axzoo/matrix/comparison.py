"""Compares what is on disk with the receipts of the jobs that wrote or read it. Nothing is written.

Snakemake reruns a job if an input is newer than its output, or a param differs from its last run. That overlooks files
replaced by older ones, results dated ahead by a wrong clock, lost or edited outputs that are not targets, and every
change after .snakemake was removed. So the input functions of the rules ask here, and jobs whose files differ from a
receipt are forced. Unchanged files cost one stat call each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axzoo.bundle.bundle_receipt import BundleReceipt, built_digest, inputs_digest, read_bundle_receipt
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json
from axzoo.core.stamps import Digests, Stamp
from axzoo.fetch.converted import is_converted
from axzoo.fetch.folder import local_checkpoint
from axzoo.fetch.sources import RECEIPT, FolderSource, changed_files, is_receipt_of
from axzoo.matrix.build import RESULTS, Build
from axzoo.matrix.lock_state import MADE_FROM, facts_now, read_made_from
from axzoo.parts import receipt as part_receipt
from axzoo.parts.kind import PartId, PartKind
from axzoo.parts.kinds import KINDS, kind_of
from axzoo.parts.lock_index import INDEX

MEMORY = RESULTS / "digests.json"
"""Digests of files whose stamps differ from those in receipts, such as copies and files that Snakemake dated."""

SMALL = 64 << 20
"""Files of at most this many bytes are hashed at the end of a build, so that the next plan knows their stamps."""

MISSING, EDITED, CHANGED, OUTDATED = "lost_output", "edited_output", "changed_input", "outdated_output"


@dataclass(frozen=True)
class Difference:
    """A reason to run a job: an output was lost or edited, an input changed, or an output comes from other inputs."""

    kind: str
    file: str

    def __str__(self) -> str:
        return f"{self.file} {_TEXTS[self.kind]}"


_TEXTS = {
    MISSING: "is missing",
    EDITED: "is not what was built",
    CHANGED: "changed",
    OUTDATED: "was built from other inputs",
}

MAX_SHOWN = 3
"""If more jobs have differences, the plan does not list them: `axzoo why` does."""


class Comparison:
    """The differences of one plan. `noted` has those of each job, by its first output."""

    def __init__(self, builds: Iterable[Build], memory: Path | None = MEMORY) -> None:
        self._builds = tuple(builds)
        self._memory = memory
        self._digests: Digests | None = None
        self._seen: dict[str, Build] = {}
        self._files: dict[str, tuple[Stamp, Any]] = {}
        self._checkpoints: dict[str, tuple[Difference, ...]] = {}
        self._locks: dict[str, tuple[Difference, ...]] = {}
        self._now = time.time_ns()
        self._ahead: set[str] = set()
        self._has_jobs = False
        self.noted: dict[str, tuple[Difference, ...]] = {}

    def note(self, outputs: Sequence[str], differences: Iterable[Difference]) -> list[str] | None:
        """Record the differences of the job with these outputs. Returns None if there are none, otherwise lines that
        say which, empty for all but the first jobs."""
        found = tuple(differences)
        if not found:
            return None
        is_new = outputs[0] not in self.noted
        self.noted[outputs[0]] = found
        return [str(found[0])] if is_new and len(self.noted) <= MAX_SHOWN else []

    def of_checkpoint(self, build: Build) -> tuple[Difference, ...]:
        """Differences between the fetch receipt, the matrix entry, and the checkpoint's files. They are determined only
        once, before the checkpoint is fetched."""
        if build.model not in self._checkpoints:
            self._checkpoints[build.model] = tuple(self._of_checkpoint(build))
        return self._checkpoints[build.model]

    def _of_checkpoint(self, build: Build) -> Iterator[Difference]:
        receipt = build.checkpoint / RECEIPT
        if self._stamp(receipt) is None:
            return  # Snakemake notices
        try:
            content = read_json(receipt)
            if not is_receipt_of(content, build.source):
                yield Difference(OUTDATED, str(receipt))
                return
            if isinstance(build.source, FolderSource):
                yield from _of_folder(build.source, content)
            shown = build.source.path if isinstance(build.source, FolderSource) else ""
            for path in changed_files(content, build.checkpoint, lambda *file: self.digests.sha256(*file)):
                if path.is_relative_to(build.checkpoint):
                    yield Difference(EDITED if path.exists() else MISSING, str(path))
                elif path.exists():  # otherwise named already
                    yield Difference(CHANGED, shown if path.name == Path(shown).name else f"{shown}/{path.name}")
        except (AxzooError, OSError, KeyError, TypeError, AttributeError):
            yield Difference(EDITED, str(receipt))

    def of_lock(self, build: Build) -> tuple[Difference, ...]:
        """Differences between made_from.json and the inputs and files of the lock. They are determined only once,
        before the lock is made again."""
        if build.model not in self._locks:
            self._locks[build.model] = tuple(self._of_lock(build))
        return self._locks[build.model]

    def _of_lock(self, build: Build) -> Iterator[Difference]:
        path = build.locks / MADE_FROM
        if self._stamp(path) is None:
            return
        made_from, now = self._made_from(build), facts_now(build)
        files = made_from.get("files")
        if not isinstance(files, dict) or set(build.lock_names) != files.keys():
            yield Difference(OUTDATED, str(path))
            return
        if now is None:
            yield Difference(CHANGED, build.model_config or f"{build.checkpoint}/{RECEIPT}")
            return
        yield from _changed_facts(build, made_from, now)
        folder = str(build.locks)
        for name, record in files.items():
            yield from self._of_output(f"{folder}/{name}", record)

    def is_locked(self, build: Build) -> bool:
        """Whether the lock is complete and up to date, so that jobs need not wait for the lock job."""
        exist = self._stamp(build.locks / MADE_FROM) and self._stamp(build.checkpoint / RECEIPT)
        return exist is not None and not self.of_checkpoint(build) and not self.of_lock(build)

    def of_parts(self, build: Build, names: Iterable[str]) -> Iterator[Difference]:
        """Differences between the receipts of these parts, their files and the inputs of their jobs. Requires a lock
        that is up to date."""
        bundled = self._bundle_receipt(build)
        locks, folder = self._made_from(build).get("files", {}), str(build.bundle)
        for name in names:
            path, receipt_path = f"{folder}/{name}", build.receipts_by_part[name]
            stamp, receipt_stamp = self._stamp(path), self._stamp(receipt_path)
            if stamp is None or receipt_stamp is None:
                if bundled is not None:  # before the first bundle, Snakemake notices what is missing
                    yield Difference(MISSING, path if stamp is None else receipt_path)
                continue
            if bundled is not None and name in bundled.parts and bundled.parts[name][0] == receipt_stamp:
                inputs, record = bundled.parts[name][1], bundled.files.get(name)
            elif (receipt := self._part_receipt(receipt_path)) is None:
                yield Difference(EDITED, receipt_path)
                continue
            elif (receipt.part, receipt.file) != (build.parts[name], name):
                yield Difference(OUTDATED, path)
                continue
            else:
                # Not bundled yet: the bundle job hashes the file, so its size is enough here.
                inputs, record = receipt.inputs, bundled.files.get(name) if bundled else None
                if record is None or record.get("sha256") != receipt.sha256:
                    record = None
                    if stamp.size != receipt.size:
                        yield Difference(EDITED, path)
                        continue
            now = self._part_inputs(build, build.parts[name], locks)
            if now is not None and now != inputs:
                yield Difference(OUTDATED, path)
            elif record is not None:
                yield from self._of_output(path, record)

    def of_calibration(self, build: Build) -> Iterator[Difference]:
        """Differences between the index of a calibration, its files and the inputs of its job. Requires a lock that is
        up to date."""
        path = build.calibration / INDEX
        if self._stamp(path) is None:
            return
        index = self._parsed(path, read_json)
        try:
            files, inputs = dict(index["files"]), index["inputs"]
            locks = {name: record["sha256"] for name, record in self._made_from(build)["files"].items()}
            texts = [self.digests.sha256(text) for text in build.calibration_texts]
        except (OSError, KeyError, TypeError, ValueError):
            yield Difference(OUTDATED, str(path))
            return
        now = part_receipt.calibration_inputs(locks, texts[0] if texts else None, build.calibration_tokens)
        if inputs != now:
            yield Difference(OUTDATED, str(path))
        for name, record in files.items():
            yield from self._of_output(f"{build.calibration}/{name}", record)

    def of_bundle(self, build: Build) -> Iterator[Difference]:
        """Differences between the bundle's receipt, its files other than the parts, and the inputs of its job. Requires
        a lock that is up to date."""
        receipt = self._bundle_receipt(build)
        if receipt is None:
            if (build.bundle / "manifest.json").exists():
                yield Difference(MISSING, str(build.bundle_receipt))
            return
        folder = str(build.bundle)
        for name, record in receipt.files.items():
            if name not in build.parts:
                yield from self._of_output(f"{folder}/{name}", record)
        yield from self._unexpected(build, receipt)
        inputs = self._bundle_inputs(build, receipt)
        if inputs is not None and inputs != receipt.inputs:
            yield Difference(OUTDATED, f"{build.bundle}/manifest.json")

    def start(self) -> int:
        """Call this before the first job runs. Gives results that are dated ahead the current time, because Snakemake
        refuses outputs that are older than their inputs. Returns their number."""
        self._has_jobs = True
        for path in self._ahead:
            self._date_now(path)
        return len(self._ahead)

    def remember(self) -> None:
        """Call this at the end, except of read-only commands. Keeps the digests of files that were read because their
        stamps were not known. If jobs have run, also reads the small files that Snakemake dated when they ended."""
        for build in self._seen.values() if self._has_jobs else ():
            receipt = read_bundle_receipt(build.bundle_receipt)
            if receipt is not None:
                self._learn(receipt)
                for name in receipt.files:
                    stamp = self._stamp(path := f"{build.bundle}/{name}")
                    if stamp is not None and stamp.size <= SMALL:
                        self._sha256(path, stamp)
        self.digests.save()

    @property
    def digests(self) -> Digests:
        """Digests by stamp: from the memory, and from the receipts of all bundles, which share files."""
        if self._digests is None:
            self._digests = Digests(self._memory)
            for build in self._builds:
                if receipt := self._parsed(build.bundle_receipt, read_bundle_receipt):
                    self._learn(receipt)
        return self._digests

    def _learn(self, receipt: BundleReceipt) -> None:
        for record in receipt.files.values():
            self.digests.learn(Stamp.from_dict(record), str(record.get("sha256")))

    def _of_output(self, path: str, record: Any) -> Iterator[Difference]:
        """The difference between a file and its record in a receipt, if any."""
        stamp = self._stamp(path)
        if stamp is None:
            yield Difference(MISSING, path)
        elif stamp != Stamp.from_dict(record) and (
            stamp.size != record.get("size") or self._sha256(path, stamp) != record.get("sha256")
        ):
            yield Difference(EDITED, path)

    def _sha256(self, path: str, stamp: Stamp) -> str | None:
        try:
            return self.digests.sha256(path, stamp)
        except OSError:
            return None

    def _unexpected(self, build: Build, receipt: BundleReceipt) -> Iterator[Difference]:
        """Files that a host program or tokenizer would pick up, although no job wrote them."""
        suffixes = tuple({kind.suffix for kind in KINDS})
        for name in _names(build.bundle):
            if name.endswith(suffixes) and name not in receipt.files:
                yield Difference(EDITED, f"{build.bundle}/{name}")
        for name in _names(build.bundle / "tokenizer"):
            if f"tokenizer/{name}" not in receipt.files:
                yield Difference(EDITED, f"{build.bundle}/tokenizer/{name}")

    def _part_inputs(self, build: Build, part: PartId, locks: dict[str, Any]) -> str | None:
        """The digest of a part's inputs; None if one of them is missing."""
        kind = kind_of(part.kind)
        calibration = self._calibration(build, kind, part)
        if part.lock_file not in locks or calibration == "":
            return None
        choices, compiler = build.job_identity(kind)
        return part_receipt.inputs_digest(str(locks[part.lock_file].get("sha256")), choices, compiler, calibration)

    def _calibration(self, build: Build, kind: PartKind, part: PartId) -> str | None:
        """The sha256 of the states that calibrate a part; "" if they are missing, None if the part needs none."""
        if not kind.is_calibrated(build.recipe):
            return None
        index = self._parsed(build.calibration / INDEX, read_json)
        try:
            return str(index["layers"][part_receipt.states_file(part)])
        except (KeyError, TypeError):
            return ""

    def _bundle_inputs(self, build: Build, bundled: BundleReceipt) -> str | None:
        """The digest that the inputs of a bundle have now; None if one of them is missing."""
        index = self._made_from(build).get("files", {}).get(INDEX)
        built = self._built(build, bundled)
        if index is None or built is None:
            return None
        arguments = build.model, build.chip, build.backend_name, build.recipe, build.chat, str(index.get("sha256"))
        try:
            return inputs_digest(*arguments, build.checkpoint / RECEIPT, built)
        except (AxzooError, OSError):
            return None

    def _built(self, build: Build, bundled: BundleReceipt) -> str | None:
        """The digest of all part receipts, which are read only if one of them was written since the bundle was."""
        stamps = {name: self._stamp(path) for name, path in build.receipts_by_part.items()}
        if stamps == {name: stamp for name, (stamp, _) in bundled.parts.items()}:
            return bundled.built
        parts = [receipt for path in build.receipt_files if (receipt := self._part_receipt(path)) is not None]
        return built_digest(parts) if len(parts) == len(stamps) else None

    def _bundle_receipt(self, build: Build) -> BundleReceipt | None:
        self._seen[str(build.bundle)] = build
        return self._parsed(build.bundle_receipt, read_bundle_receipt)  # type: ignore[no-any-return]

    def _part_receipt(self, path: str) -> part_receipt.Receipt | None:
        return self._parsed(path, part_receipt.read_receipt)  # type: ignore[no-any-return]

    def _made_from(self, build: Build) -> dict[str, Any]:
        return self._parsed(build.locks / MADE_FROM, lambda path: read_made_from(path.parent)) or {}

    def _parsed(self, path: str | Path, read: Callable[[Path], Any]) -> Any:
        """A receipt, read again only if its stamp changed; None if it is missing or damaged."""
        stamp, name = self._stamp(path), str(path)
        if stamp is None:
            return None
        if name not in self._files or self._files[name][0] != stamp:
            try:
                self._files[name] = stamp, read(Path(path))
            except (AxzooError, OSError):
                self._files[name] = stamp, None
        return self._files[name][1]

    def _stamp(self, path: str | Path) -> Stamp | None:
        """The stamp of one of the results; None if it is missing."""
        try:
            stamp = Stamp.of(path)
        except OSError:
            return None
        if stamp.modified_ns > self._now and stamp.modified_ns > time.time_ns():
            if self._has_jobs:
                return self._date_now(str(path))
            self._ahead.add(str(path))
        return stamp

    def _date_now(self, path: str) -> Stamp:
        with self.digests.unchanged([path]):
            os.utime(path)
        return Stamp.of(path)


def _of_folder(source: FolderSource, content: Any) -> Iterator[Difference]:
    """Whether a local checkpoint still is the same folder with the same files."""
    try:
        found = local_checkpoint(source.path)
    except (AxzooError, OSError):
        yield Difference(CHANGED, source.path)
        return
    recorded = content.get("converted_from") if is_converted(found.files) else content
    if recorded is None or recorded["root"] != str(found.folder):
        yield Difference(CHANGED, source.path)
        return
    for name in sorted(set(found.files.names) ^ set(recorded["files"])):
        yield Difference(CHANGED, f"{source.path}/{name}")


def _changed_facts(build: Build, made_from: dict[str, Any], now: dict[str, Any]) -> Iterator[Difference]:
    for name, value in now.items():
        if made_from.get(name) != value:
            if name == "source":
                yield Difference(CHANGED, f"{build.checkpoint}/{RECEIPT}")
            elif name == "model_config" and build.model_config is not None:
                yield Difference(CHANGED, build.model_config)
            else:
                yield Difference(OUTDATED, f"{build.locks}/{MADE_FROM}")


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
