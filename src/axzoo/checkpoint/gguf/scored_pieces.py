"""SentencePiece tokenizers of GGUF files (tokenizer.ggml.model "llama"): pieces with scores, as in Llama-2."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's token types, which are those of SentencePiece."""


def scored_pieces(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int], add_space_prefix: bool
) -> Tokenizer:
    """A BPE that joins the pieces that SentencePiece joins, without added tokens.

    SentencePiece joins the two neighbours that form the piece with the highest score; BPE joins them in the order of
    its merges. So there is a merge for every way to cut a piece in two, ordered by the piece's score.
    """
    vocabulary = {token: index for index, token in enumerate(tokens)}
    normal = [index for index, kind in enumerate(kinds) if kind in (NORMAL, USER_DEFINED)]
    merges = []
    for index in sorted(normal, key=lambda index: (-scores[index], index)):
        token = tokens[index]
        cuts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in cuts if pair[0] in vocabulary and pair[1] in vocabulary]
        merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == UNKNOWN), None)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prepend = [normalizers.Prepend("▁")] if add_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if add_space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
