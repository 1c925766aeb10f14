"""Check level 1 of finished bundles with five prompts each: no sound build may be refused.

    python scripts/sound_builds.py BUNDLE ...

Each BUNDLE is in a project's `results` folder. Prints a row per bundle and fails if a file is found faulty. The largest
error is close to 1 of the allowed by construction: a correctly rounded number may lie half a step from the oracle's,
and among many numbers one does. What is left for chance is the fp32 noise beyond that half step.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from axzoo.bundle.manifest import read_manifest
from axzoo.check.level_1 import check_files
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.tokenizer.local import load_tokenizer

PROMPTS = (
    "What is the capital of France?",
    "a",
    "Write a haiku about the sea.",
    "def fibonacci(n):\n    ",
    "東京の天気は 🙂 " * 12,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    refused = 0
    print(
        "| bundle | prompts | refused | largest error, of the allowed | beyond rounding, of the fp32 noise allowed "
        "| numbers rounded differently |\n" + "|---" * 6 + "|"
    )
    for folder in parser.parse_args().bundles:
        bundle, manifest = open_bundle(folder), read_manifest(folder)
        results = folder.resolve().parent.parent
        locks = results / "locks" / str(manifest.model)
        source = results / "checkpoints" / str(manifest.model) / "source.json"
        tokenizer = load_tokenizer(bundle.tokenizer)
        found = [check_files(bundle, manifest, locks, source, tokenizer.encode(prompt)) for prompt in PROMPTS]
        faulty = sum(bool(level_1.faults) for level_1 in found)
        close = [c.closeness for level_1 in found for c in (*level_1.layers, *level_1.files) if c.closeness]
        worst, flipped = max(c.worst for c in close), max(c.flipped or 0 for c in close)
        beyond = max(c.beyond_rounding for c in close)
        print(f"| {folder.name} | {len(found)} | {faulty} | {worst:.3f} | {beyond:.3f} | {flipped:.4f} |", flush=True)
        refused += faulty
    if refused:
        raise SystemExit(f"{refused} checks refused a build")


if __name__ == "__main__":
    main()
