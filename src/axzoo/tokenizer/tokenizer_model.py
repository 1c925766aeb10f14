"""Which rules go with a tokenizer.model: the file itself does not say."""

from __future__ import annotations

from collections.abc import Mapping

from sentencepiece import SentencePieceProcessor

from axzoo.errors import AxzooError
from axzoo.tokenizer.backend import LoadedBackend
from axzoo.tokenizer.chatglm_pieces import ChatGlmPieces
from axzoo.tokenizer.folder import TokenizerFolder
from axzoo.tokenizer.llama_pieces import llama_pieces
from axzoo.tokenizer.pieces import load_processor

_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast", "LlamaTokenizerWrapper", "CodeLlamaTokenizer")
_CHATGLM = "ChatGLMTokenizer"
_BY_MODEL_TYPE = {"llama": _LLAMA[0], "chatglm": _CHATGLM}
"""Where no tokenizer_class is named."""


def load_tokenizer_model(files: TokenizerFolder, model_type: str | None = None) -> LoadedBackend:
    """Reads tokenizer.model by the rules of its tokenizer_class, or of the checkpoint's model_type if there is none, or
    of `model_type` where that is not known either.

    Raises AxzooError when the file is broken, follows rules that axzoo does not know, or nothing names its rules.
    """
    path = files.path / "tokenizer.model"
    named = (_BY_MODEL_TYPE.get(str(name)) for name in (files.model_config.get("model_type"), model_type))
    kind = files.config.get("tokenizer_class") or next(filter(None, named), None)
    if kind is None:
        raise AxzooError(
            f"{path} does not say by which rules it is read: add the checkpoint's tokenizer_config.json (its "
            "tokenizer_class tells), or its config.json (model_type llama or chatglm)"
        )
    if kind not in (*_LLAMA, _CHATGLM):
        raise AxzooError(f"{path} belongs to a {kind!r:.80}, whose rules axzoo does not know: add its tokenizer.json")
    processor = load_processor(path)
    special_tokens = {**_named_tokens(processor), **files.special_tokens}
    if kind == _CHATGLM:
        return _chatglm(ChatGlmPieces(processor), special_tokens, files)
    return LoadedBackend(llama_pieces(processor, files, special_tokens), special_tokens)


def _chatglm(backend: ChatGlmPieces, special_tokens: Mapping[str, str], files: TokenizerFolder) -> LoadedBackend:
    """ChatGLM2 has the same class and pieces, but was taught to converse in another way."""
    is_second = "chatglm2" in str(files.model_config.get("_name_or_path", ""))
    return LoadedBackend(
        backend, special_tokens, chat=None if is_second else backend.encode_chat, eos_token_ids=backend.eos_token_ids
    )


def _named_tokens(processor: SentencePieceProcessor) -> dict[str, str]:
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    return {name: processor.id_to_piece(index) for name, index in ids.items() if index >= 0}
