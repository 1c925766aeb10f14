"""Tokenizers of the kinds that the models of the zoo have, trained here and saved as checkpoint folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from piece_models import MINICPM_TEMPLATE, configure, special, train
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog, 1234567890 times!",
    "Hello, world! How are you? I'm fine, thank you; you're welcome.\n\n\tdef main():\n    return 42",
    "法国的首都是巴黎。今天天气很好。我们去公园吧。",
    "emoji 😀😁😂🤣 and flags 🇫🇷🇨🇳, family 👩‍👩‍👧‍👦, naïve café Ünïcödé",
] * 4

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with special tokens, as used by GPT-2, Qwen and SmolLM."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _save(backend, tmp_path_factory.mktemp("byte_level"), "<|endoftext|>", "<|im_end|>")


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece-style BPE with byte fallback and a prepended <s>, as used by Llama-2."""
    backend = Tokenizer(models.BPE())
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False, limit_alphabet=60)
    backend.train_from_iterator(CORPUS, trainer)
    trained = json.loads(backend.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted(trained["vocab"], key=trained["vocab"].get)
    merges = [tuple(pair) for pair in trained["merges"]]
    vocab = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizer
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return _save(backend, tmp_path_factory.mktemp("byte_fallback"), "<s>", "</s>")


def _save(backend: Tokenizer, folder: Path, bos: str, eos: str) -> Path:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer_folder(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@pytest.fixture(scope="session")
def llama_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model like that of Llama-2: BPE, byte fallback, a space before every text."""
    folder = train(tmp_path_factory.mktemp("llama_model"), CORPUS, "bpe", dummy_prefix=True)
    return configure(folder, tokenizer_class="LlamaTokenizer", legacy=True, chat_template=CHATML)


@pytest.fixture(scope="session")
def minicpm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model like that of MiniCPM-V.

    It adds no space before a text, and tokenizer_config.json lists tokens, one of which is not a piece.
    """
    folder = train(tmp_path_factory.mktemp("minicpm_model"), CORPUS, "unigram", dummy_prefix=False)
    return configure(
        folder,
        tokenizer_class="LlamaTokenizerWrapper",
        auto_map={"AutoTokenizer": ["modeling_minicpmv.LlamaTokenizerWrapper", None]},
        added_tokens_decoder={**special(1, "<s>"), **special(2, "</s>"), **special(1000, "<image>")},
        bos_token={"content": "<s>"},
        eos_token="</s>",
        chat_template=MINICPM_TEMPLATE,
    )


@pytest.fixture(scope="session")
def chatglm_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model like that of ChatGLM3, whose additional tokens are defined only in its code."""
    folder = train(tmp_path_factory.mktemp("chatglm_model"), CORPUS, "bpe", dummy_prefix=True)
    (folder / "config.json").write_text('{"model_type": "chatglm", "_name_or_path": "THUDM/chatglm3-6b"}')
    return folder
