"""Pictures in prompts: a tiny MiniCPM-V bundle, from the checkpoint to the answer."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny_vision
from axzoo.bundle.verification import deviations
from axzoo.cli import main
from axzoo.runtime.bundle_folder import open_bundle
from axzoo.runtime.image_encoder import VisionModel, insert_rows
from axzoo.runtime.images import read_picture, resized
from axzoo.runtime.model import Mode, load_model
from published import minicpm
from published.minicpmv import Vision
from vision_bundle import EXACT, make_bundle


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
    from dataclasses import replace

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


def test_run_answers_about_a_picture(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--greedy", "--max-tokens", "6", "--prompt", "what?"]
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
