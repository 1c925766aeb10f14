"""Compare axzoo's token ids with those of transformers, for tokenizers and texts that are not in the repository.

    python scripts/compare_tokenizers.py expect FOLDER TEXT > expected.jsonl    needs transformers, of any version
    python scripts/compare_tokenizers.py compare FOLDER expected.jsonl          needs axzoo

`expect` encodes and decodes each line of the file TEXT, and some built-in lines, with
`AutoTokenizer.from_pretrained(FOLDER)`; with --slow, it uses the tokenizer that transformers 4 builds on sentencepiece.
`compare` prints the differences and exits with status 1 if there are any. A line of expected.jsonl is
{"text": ..., "ids": [...], "decoded": ...}; `decoded` is optional.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

TRICKY = (
    "",
    " ",
    "  two  spaces ",
    "\n\n\ttabs\r\n",
    "法国的首都是巴黎。今天天气很好。我们去公园吧。",
    "日本語のテキスト、한국어 텍스트, عربى, עברית, हिन्दी",
    "😀 family 👩‍👩‍👧‍👦 flag 🇫🇷 keycap 1️⃣",
    "naïve café ﬁ \uff21 ᚠᛇᚻ \u200b\u0301 \ufffd \x00\x7f",
    "1234567890 3.14 1e-9 ١٢٣",
    "def f(x):\n    return x  # <- tabs\tand spaces",
    "<s>bos</s> <unk> <|im_start|>user\nx<|im_end|><|endoftext|>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<用户>你好<AI>好 </s> <image></image> [gMASK]sop<|user|>\n",
)


def expect(folder: Path, text: Path, slow: bool) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **({"use_fast": False} if slow else {}))
    for line in [*TRICKY, *text.read_text(encoding="utf-8").splitlines()]:
        ids = tokenizer.encode(line)
        entry = {"text": line, "ids": ids}
        if not slow:  # the slow tokenizer drops the first space of a text when it decodes
            entry["decoded"] = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        print(json.dumps(entry))


def compare(folder: Path, expected: Path) -> bool:
    from axzoo.tokenizer.local import load_tokenizer

    tokenizer = load_tokenizer(folder)
    texts = wrong_ids = wrong_texts = whole = 0
    for text, ids, decoded in _expected(expected):
        texts += 1
        whole += tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=False) == text
        ours = tokenizer.encode(text)
        if ours != ids:
            wrong_ids += 1
            print(f"ids of {text[:60]!r}: {ours[:12]}, expected {ids[:12]}")
        if decoded is not None and tokenizer.decode(ids) != decoded:
            wrong_texts += 1
            print(f"text of {ids[:12]}: {tokenizer.decode(ids)[:60]!r}, expected {decoded[:60]!r}")
    print(
        f"{folder}: {texts} texts, {texts - wrong_ids} with equal ids, {texts - wrong_texts} with equal decoded text, ",
        end="",
    )
    print(f"{whole} unchanged by encoding and decoding")
    return wrong_ids == wrong_texts == 0


def _expected(path: Path) -> Iterator[tuple[str, list[int], str | None]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            yield entry["text"], entry["ids"], entry.get("decoded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    expecting = verbs.add_parser("expect")
    expecting.add_argument("folder", type=Path)
    expecting.add_argument("text", type=Path)
    expecting.add_argument("--slow", action="store_true")
    comparing = verbs.add_parser("compare")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("expected", type=Path)
    args = parser.parse_args()
    if args.verb == "expect":
        expect(args.folder, args.text, args.slow)
    else:
        sys.exit(not compare(args.folder, args.expected))


if __name__ == "__main__":
    main()
