"""A MiniCPM without model_type in its config.json, as on the hub, built and checked."""

from __future__ import annotations

import json

import pytest
from workflow_project import ENTRY, LAYERS, REPOSITORY, Project

pytestmark = pytest.mark.workflow

HIDDEN, INNER, HEADS, KV_HEADS = 128, 320, 4, 2


def as_minicpm(project: Project) -> int:
    """Replaces the config.json of the llama checkpoint with that of a MiniCPM. Returns vocab_size."""
    path = project / "checkpoint/config.json"
    llama = json.loads(path.read_text())
    keys = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    minicpm = {key: llama[key] for key in (*keys, "vocab_size", "max_position_embeddings", "rms_norm_eps")}
    minicpm |= {"architectures": ["MiniCPMForCausalLM"], "auto_map": {"AutoModel": "modeling_minicpm.MiniCPMModel"}}
    minicpm |= {"scale_emb": 1.5, "dim_model_base": 64, "scale_depth": 1.4, "tie_word_embeddings": False}
    path.write_text(json.dumps(minicpm | {"eos_token_id": llama["eos_token_id"]}))
    return int(llama["vocab_size"])


def test_builds_with_the_repository_model_config_and_correct_sizes(project: Project) -> None:
    vocab = as_minicpm(project)
    assert json.loads((REPOSITORY / "config/minicpm.json").read_text()) == {"model_type": "minicpm"}
    kv_width = HIDDEN // HEADS * KV_HEADS
    layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * kv_width + 3 * HIDDEN * INNER + 2 * HIDDEN
    sizes = {"layer": layer, "post": (vocab + 1) * HIDDEN, "kv_width": kv_width}
    entry = ENTRY | {"model_type": "minicpm", "model_config": "config/minicpm.json"}

    project.write_matrix({"tiny": {key: value for key, value in entry.items() if key != "model_config"}})
    run = project.snakemake()
    assert "config.json: model_type None is not supported; supported are: " in run.shown
    assert "'modeling_minicpm.MiniCPMModel'" in run.shown

    project.write_matrix({"tiny": entry | {"sizes": sizes | {"layer": 2 * layer}}})
    run = project.snakemake()
    assert f"the matrix says sizes.layer: {2 * layer}, but the checkpoint has {layer}:" in run.shown, run.shown

    project.write_matrix({"tiny": entry | {"sizes": sizes}})
    run = project.snakemake()
    assert run.status == 0, run.shown
    assert run.jobs == {"lock": 1, f"layers_0_{LAYERS - 1}": 1, "post": 1, "embed": 1, "bundle": 1} | {
        "check_layers": 1,
        "check_generation": 1,
    }
    assert (project / "results/AX650/tiny-w8a16/minicpm_p16_l0_together.axmodel").exists()
