"""Pictures in prompts: a tiny MiniCPM-V bundle, from the checkpoint to the answer."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny_vision
from axzoo.bundle.verification import deviations
from axzoo.cli import main
from axzoo.core.errors import AxzooError
from axzoo.core.files import read_json, write_json
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.image_encoder import EncodedImage, VisionModel, insert_rows
from axzoo.runtime.images import read_picture, resized
from axzoo.runtime.model import Mode, load_model
from axzoo.runtime.prompting import TokenizerChoice, open_tokenizer
from published import minicpm
from published.minicpmv import Vision
from vision_bundle import EXACT, make_bundle

sys.path.extend(str(Path(__file__).parents[1] / room) for room in ("serving", "tokenizer"))
from chat_server import chat_server
from tokenizer_server import tokenizer_server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Vision]:
    return tiny_vision.make_checkpoint(tmp_path_factory.mktemp("vision") / "checkpoint")


@pytest.fixture(scope="module")
def bundle(checkpoint: tuple[Path, Vision], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(checkpoint[0], tmp_path_factory.mktemp("built"), EXACT)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((900, 600)).save(path)
    return path


def test_the_bundle_is_complete_and_verified(bundle: Path) -> None:
    assert (bundle / "vpm_resampler.axmodel").is_file()
    assert list(deviations(bundle)) == []


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_logits_of_an_image_prompt_agree_with_the_published_model(
    bundle: Path, checkpoint: tuple[Path, Vision], picture: Path, mode: Mode
) -> None:
    folder, vision = checkpoint
    files = open_bundle(bundle)
    assert files.vision is not None
    image = VisionModel(files.vision).encode(read_picture(picture))
    text = [1, 200, 201, tiny_vision.IMAGE, *[0] * 16, tiny_vision.IMAGE_END, 202, 203]
    model = load_model(bundle, mode)
    found = model.prefill(insert_rows(model, text, [image]))

    pixels = torch.from_numpy(resized(read_picture(picture), 70, 70))
    stored = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("llm."): tensor for name, tensor in stored.items() if name.startswith("llm.")}
    want = minicpm.logits(tiny_vision.config(), weights, torch.tensor(text), {4: vision.rows(pixels)})[-1].numpy()
    without = minicpm.logits(tiny_vision.config(), weights, torch.tensor(text))[-1].numpy()
    scale = np.abs(want).max()
    assert np.abs(found - want).max() <= 0.02 * scale  # the embedding is bf16
    assert np.abs(without - want).max() >= 0.2 * scale


def test_the_scale_is_applied_once_whoever_applies_it(
    bundle: Path, checkpoint: tuple[Path, Vision], tmp_path: Path
) -> None:
    in_graph = make_bundle(checkpoint[0], tmp_path, replace(EXACT, embedding_scale="graph"))
    ids = [1, 200, 150, 300]
    host, graph = (load_model(folder).prefill(ids) for folder in (bundle, in_graph))
    np.testing.assert_allclose(host, graph, atol=0.02 * np.abs(host).max())
    assert "embedding_scale" not in (in_graph / "config.json").read_text()


def test_two_pictures_are_kept_apart_in_the_cache(bundle: Path) -> None:
    files = open_bundle(bundle)
    assert files.vision is not None
    vision = VisionModel(files.vision)
    first, second = (
        vision.encode(np.random.default_rng(seed).integers(0, 256, (50, 50, 3), dtype=np.uint8)) for seed in (1, 2)
    )
    model = load_model(bundle)
    text = [1, tiny_vision.IMAGE, *[0] * 16, tiny_vision.IMAGE_END, 202]
    one, again, other = (insert_rows(model, text, [image]) for image in (first, first, second))
    assert one == again
    assert one[:2] == other[:2]
    assert not set(one[2:18]) & set(other[2:18])


def test_the_prompt_of_a_picture_has_the_ids_of_the_board(bundle: Path) -> None:
    """<s>, the question's start, <image>; rows from position 5; </image>, a newline, text, and the answer's start."""
    files = open_bundle(bundle)
    assert files.vision is not None
    assert files.vision.tokens == (tiny_vision.IMAGE, 0, tiny_vision.IMAGE_END)
    config = read_json(bundle / "config.json")
    assert (config["prompt_format"], config["vpm_queries"]) == ("minicpm", 16)
    choice = TokenizerChoice(files.tokenizer_type, str(files.tokenizer), files.bos, files.eos, files.eos_token_ids)
    tokenizer = open_tokenizer(choice, files.uses_chat(False))
    image = EncodedImage((np.zeros((16, 36), np.float32),), (0, 0), files.vision.tokens)
    ids = tokenizer.encode([{"role": "user", "content": f"{image.placeholder}hi"}])
    assert ids == _board_ids(ids, 16)
    assert ids[5:21] == [0] * 16
    sliced = EncodedImage((image.blocks[0],) * 7, (2, 3), files.vision.tokens)
    text = sliced.placeholder
    assert text.count("<image>") == 7
    assert text.count("\n") == 2
    assert len(insert_rows(load_model(bundle), tokenizer.encode([{"role": "user", "content": text}]), [sliced])) > 100


def _board_ids(ids: list[int], rows: int) -> list[int]:
    """What the prompt "hi" about a picture must be. The ids of "<", ">", "h" and "i" are those of the tokenizer."""
    left, right = ids[1], ids[3]
    user, answer = ([left, tiny_vision.PIECES[word], right] for word in ("用户", "AI"))
    image = [tiny_vision.IMAGE, *[0] * rows, tiny_vision.IMAGE_END, tiny_vision.PIECES["\n"]]
    return [1, *user, *image, *ids[-5:-3], *answer]


@pytest.mark.parametrize("text", ["a" * 16, "\n" * 16, "<unk>" * 16])
def test_text_that_repeats_a_token_is_no_place_for_a_picture(bundle: Path, text: str) -> None:
    files = open_bundle(bundle)
    assert files.vision is not None
    choice = TokenizerChoice(files.tokenizer_type, str(files.tokenizer), files.bos, files.eos, files.eos_token_ids)
    tokenizer = open_tokenizer(choice, True)
    image = VisionModel(files.vision).encode(np.zeros((70, 70, 3), np.uint8))
    ids = tokenizer.encode([{"role": "user", "content": f"{image.placeholder}{text}b{text}"}])
    model = load_model(bundle)
    found = insert_rows(model, ids, [image])
    changed = [position for position, pair in enumerate(zip(ids, found, strict=True)) if pair[0] != pair[1]]
    assert changed == list(range(5, 21))
    twice = tokenizer.encode([{"role": "user", "content": image.placeholder * 2}])
    with pytest.raises(AxzooError, match="2 places for 1 parts of pictures: omit <image> and </image> in the text"):
        insert_rows(model, twice, [image])


def test_a_bundle_whose_tokenizer_has_no_picture_tokens(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    config = read_json(copy / "config.json")
    del config["picture_tokens"]
    write_json(copy / "config.json", config)
    files = open_bundle(copy).vision
    assert files is not None
    with pytest.raises(AxzooError, match="has no picture_tokens: build the bundle again from a checkpoint whose"):
        VisionModel(files)
    for wrong in ("x", [1, 2], [1, 2, "3"]):
        write_json(copy / "config.json", config | {"picture_tokens": wrong})
        with pytest.raises(AxzooError, match="picture_tokens must be"):
            open_bundle(copy)
    write_json(copy / "config.json", config | {"prompt_format": "other"})
    with pytest.raises(AxzooError, match="prompt_format must be minicpm, not 'other'"):
        open_bundle(copy)


def test_the_tokenizer_server_makes_prompts_with_pictures(
    bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--greedy", "--max-tokens", "6", "--prompt", "hi", "--image", str(picture)]
    assert main(["run", str(bundle), *options]) == 0
    want = capsys.readouterr().out
    with tokenizer_server(bundle) as server:
        ids = server.post("/encode", {"text": "hi", "img_prompt": True}).body["token_ids"]
        assert ids == _board_ids(ids, 16)
        plain = server.post("/encode", {"text": "hi", "img_prompt": False}).body["token_ids"]
        assert plain == [*ids[:4], *ids[-5:]]
        uid = server.get("/get_uid").body["uid"]
        first = server.post("/encode", {"uid": uid, "text": "hi", "img_prompt": True}).body
        assert first == {"token_ids": ids, "diff": ids}
        again = server.post("/encode", {"uid": uid, "text": "hi", "last_reply": "a", "img_prompt": False}).body
        assert again["token_ids"][: len(ids)] == ids
        words = ["--tokenizer_type", "2", "--filename_tokenizer_model", f"http://127.0.0.1:{server.port}"]
        assert main(["run", str(bundle), *words, *options]) == 0
        assert capsys.readouterr().out == want
        script = {**os.environ, "MAIN_PREFILL": f"{sys.executable} -m axzoo.cli run --greedy --max-tokens 6"}
        text = (bundle / "run.sh").read_text()
        assert '--filename_vpm_resampler_axmodedl "vpm_resampler.axmodel"' in text
        moved = bundle / "run_here.sh"
        moved.write_text(text.replace("127.0.0.1:12345", f"127.0.0.1:{server.port}"))
        done = subprocess.run(
            ["sh", moved, "hi", picture], env=script, input="q\n", capture_output=True, text=True, timeout=60
        )
        moved.unlink()
        assert done.stdout.startswith(want)
        assert "image encode time : " in done.stderr


def test_run_answers_about_a_picture(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--greedy", "--max-tokens", "40", "--prompt", "?"]
    assert main(["run", str(bundle), *options, "--image", str(picture)]) == 0
    seen = capsys.readouterr()
    assert "image encode time : " in seen.err
    assert main(["run", str(bundle), *options]) == 0
    assert capsys.readouterr().out != seen.out


def test_flags_of_main_prefill(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--greedy", "--max-tokens", "6", "--prompt", "what?", "--image", str(picture)]
    assert main(["run", str(bundle), *options]) == 0
    want = capsys.readouterr().out
    flags = {
        "template_filename_axmodel": bundle / "minicpmv_p32_l%d_together.axmodel",
        "filename_post_axmodel": bundle / "minicpmv_post.axmodel",
        "filename_tokens_embed": bundle / "model.embed_tokens.weight.bfloat16.bin",
        "filename_vpm_resampler_axmodedl": bundle / "vpm_resampler.axmodel",
        "filename_tokenizer_model": bundle / "tokenizer" / "tokenizer.json",
        "axmodel_num": 3,
        "tokens_embed_num": tiny_vision.VOCABULARY,
        "tokens_embed_size": 36,
        "tokenizer_type": 4,
        "vpm_width": 70,
        "vpm_height": 70,
        "vpm_two_stage": 0,
        "bos": 0,
        "live_print": 1,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["run", *words, *options]) == 0
    assert capsys.readouterr().out == want


def test_interactive_prompts_ask_for_an_image(
    bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    answers = iter(["what?", str(picture), "and now?", "", "q"])

    def read(prompt: str) -> str:
        asked.append(prompt)
        return next(answers)

    monkeypatch.setattr("builtins.input", read)
    assert main(["run", str(bundle), "--greedy", "--max-tokens", "3"]) == 0
    assert asked == ["prompt >> ", "image >> ", "prompt >> ", "image >> ", "prompt >> "]
    assert capsys.readouterr().err.count("image encode time") == 1


def test_errors_say_what_to_do(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.png"
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40)).save(buffer, "PNG")
    broken.write_bytes(buffer.getvalue()[:60])
    cases = {
        ("--image", str(tmp_path / "none.png"), "--prompt", "x"): "none.png is not a file: pass a picture",
        ("--image", str(broken), "--prompt", "x"): "broken.png cannot be decoded",
        ("--image", str(bundle / "config.json"), "--prompt", "x"): "config.json is not a picture: use one of JPEG",
        ("--image", str(broken)): "needs a question: add --prompt TEXT",
    }
    for words, message in cases.items():
        assert main(["run", str(bundle), *words]) == 1
        assert message in capsys.readouterr().err
    assert main(["run", str(bundle), "--slices", "--prompt", "x", "--image", str(_picture(tmp_path))]) == 1
    assert "set image_slices: true and build it again" in capsys.readouterr().err


def _picture(folder: Path) -> Path:
    path = folder / "picture.png"
    Image.new("RGB", (40, 40)).save(path)
    return path


def test_serve_reads_slices(
    checkpoint: tuple[Path, Vision], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer of `serve --slices` is that of `run --slices`."""
    recipe = replace(EXACT, image_slices=True, kv_cache_len=255, last_kv_cache_len=(32, 64, 96, 128, 160, 192))
    folder = make_bundle(checkpoint[0], tmp_path, recipe)
    options = ["--greedy", "--max-tokens", "8", "--prompt", "?", "--image", str(picture)]
    assert main(["run", str(folder), "--slices", *options]) == 0
    want = capsys.readouterr().out.rstrip("\n")
    (folder / "post_config.json").write_text('{"enable_temperature": false, "enable_top_k_sampling": false}')
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    question = {"model": "bundle", "messages": [{"role": "user", "content": content}], "max_tokens": 8}
    tokens = {}
    for slices in ((), ("--slices",)):
        with chat_server(folder, "--mode", "exact", *slices) as server:
            status, body = server.chat(**question)
            assert status == 200, body
            tokens[slices] = body["usage"]["prompt_tokens"]
    assert body["choices"][0]["message"]["content"] == want
    assert tokens["--slices",] - tokens[()] == 2 * (16 + 2) + 2  # two slices in a row, <slice>, </slice>


def test_serve_refuses_slices_of_a_bundle_without_them(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(bundle), "--slices"]) == 1
    assert "built without slices: set image_slices: true and build it again" in capsys.readouterr().err
