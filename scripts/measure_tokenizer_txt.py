"""Measure how much of a model's token ids a board yields with each way to write tokenizer.txt (docs/boards.md).

    python scripts/measure_tokenizer_txt.py FOLDER... --text FILE

FOLDER holds a checkpoint's tokenizer. FILE is a text, such as the test text of wikitext-2; 500 of its lines are used.
The other texts are 100 pieces of markdown (this repository and the descriptions of installed packages), 50 of Python
(the standard library), 50 sentences in Chinese and 40 conversations. None of them is used to choose the file.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from axzoo.tokenizer.host_choice import CHATS, Agreement, Samples, agreement, choose, take_samples, variants
from axzoo.tokenizer.host_tokenizer import host_tokenizer
from axzoo.tokenizer.host_vocabulary import host_vocabulary
from axzoo.tokenizer.local import load_tokenizer

ROOT = Path(__file__).parents[1]
PIECE_CHARS = 1500


def pieces(texts: Iterator[str], count: int) -> list[str]:
    """The beginnings of texts, up to a whole line."""
    cut = (text[:PIECE_CHARS].rpartition("\n")[0] + "\n" for text in texts)
    found = [piece for piece in cut if len(piece) > PIECE_CHARS // 3]
    return found[:count]


def markdown() -> Iterator[str]:
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]):
        yield path.read_text(encoding="utf-8")
    known = {str(package.metadata["Name"]).lower(): package for package in distributions()}
    for _, package in sorted(known.items()):
        if "markdown" in str(package.metadata.get("Description-Content-Type")):
            yield str(package.metadata.get_payload())


def python() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        yield text[len(text) // 3 :].partition("\n")[2]


def conversations(chinese: list[str]) -> list[list[dict[str, str]]]:
    prompts = (ROOT / "scripts/prompts.txt").read_text().splitlines()
    system = {"role": "system", "content": "You are a helpful assistant. Today's date is 3 May 2026.\nAnswer briefly."}
    users = [{"role": "user", "content": prompt} for prompt in prompts]
    answer = {
        "role": "assistant",
        "content": "Of course!\n\nHere is what I know:\n- it depends,\n- and it's complicated.",
    }
    return [
        *([user] for user in users),
        *([system, user] for user in users),
        *([one, answer, other] for one, other in zip(users, users[1:] + users[:1], strict=True)),
        *([{"role": "user", "content": sentence}] for sentence in chinese[:10]),
    ]


def row(name: str, found: Agreement, samples: Samples) -> str:
    shares = [f"{100 * share:.2f}" for kind, share in found.shares.items() if kind != CHATS]
    return f"| {name} | {' | '.join(shares)} | {found.equal_chats} of {found.chats} | {100 * found.total:.2f} |"


def measure(folder: Path, samples_of: dict[str, list[str]], chats: list[list[dict[str, str]]]) -> None:
    tokenizer = load_tokenizer(folder)
    rows = tokenizer.vocab_size
    started = time.monotonic()
    chosen = choose(tokenizer, rows, tokenizer.eos_token_ids)
    data = chosen.txt.to_bytes()
    seconds = time.monotonic() - started
    samples = take_samples(tokenizer, samples_of, chats)
    vocabulary = host_vocabulary(tokenizer, rows, tokenizer.eos_token_ids)
    base = host_tokenizer(vocabulary.txt)
    print(
        f"\n{folder.name}: {rows} tokens, kind {chosen.txt.kind.value}, {len(data)} bytes, chosen in {seconds:.1f} s\n"
    )
    kinds = [kind for kind in samples if kind != CHATS]
    print(f"| tokenizer.txt | {' | '.join(kinds)} | conversations | all |\n|---|{'---|' * len(kinds)}---|---|")
    for variant in variants(vocabulary):
        name = ", ".join([f"family {variant.family}", *variant.repairs])
        name += " (chosen)" if variant == chosen.variant else ""
        print(row(name, agreement(base.changed(variant.special, variant.family), samples), samples), flush=True)
    print(row("the chosen file on older hosts", agreement(base.changed(chosen.variant.special), samples), samples))
    for note in chosen.notes:
        print(f"Note: {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    chinese = (ROOT / "scripts/sentences_zh.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in args.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = {
        "text": lines[:500],
        "markdown": pieces(markdown(), 100),
        "Python": pieces(python(), 50),
        "Chinese": chinese,
    }
    print(", ".join(f"{len(listed)} of {kind}" for kind, listed in texts.items()), file=sys.stderr)
    for folder in args.folders:
        measure(folder, texts, conversations(chinese))


if __name__ == "__main__":
    main()
