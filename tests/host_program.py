"""A host program like those for the board: prefill by shape group, then greedy decoding. It does not import axzoo.

usage: host_program.py BUNDLE PROMPT MAX_TOKENS
"""

import json
import sys
from pathlib import Path

import axengine
import numpy as np
from axengine import InferenceSession
from ml_dtypes import bfloat16
from tokenizers import Tokenizer


def main() -> None:
    folder, prompt, max_tokens = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    config = json.loads((folder / "config.json").read_text())
    hidden_size = config["tokens_embed_size"]
    embeds = np.fromfile(folder / config["filename_tokens_embed"], dtype=np.uint16)
    embeds = embeds.view(bfloat16).reshape(config["tokens_embed_num"], hidden_size)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))

    provider = axengine.get_available_providers()[0]
    layers = []
    for i in range(config["axmodel_num"]):
        path = folder / (config["template_filename_axmodel"] % i)
        layers.append(InferenceSession(str(path), providers=[provider]))
    post = InferenceSession(str(folder / config["filename_post_axmodel"]), providers=provider)
    print(f"provider: {post.get_providers()}", file=sys.stderr)

    decode_inputs = {node.name: node for node in layers[0].get_inputs()}
    kv_cache_len, kv_dim = decode_inputs["K_cache"].shape[1:]
    prefill_len = layers[0].get_inputs(shape_group=1)[2].shape[1]
    k_caches = [np.zeros((1, kv_cache_len, kv_dim), dtype=bfloat16) for _ in layers]
    v_caches = [np.zeros((1, kv_cache_len, kv_dim), dtype=bfloat16) for _ in layers]

    token_ids = tokenizer.encode(prompt).ids
    token_len = len(token_ids)
    for p in range((token_len + prefill_len - 1) // prefill_len):
        n = min(prefill_len, token_len - p * prefill_len)
        indices = np.arange(p * prefill_len, (p + 1) * prefill_len, dtype=np.uint32).reshape(1, prefill_len)
        mask = np.zeros((1, prefill_len, prefill_len * (p + 1))) - 65536
        for i in range(n):
            mask[:, i, : p * prefill_len + i + 1] = 0
        mask = mask.astype(bfloat16)
        data = np.zeros((1, prefill_len, hidden_size), dtype=bfloat16)
        data[0, :n] = embeds[token_ids[p * prefill_len : p * prefill_len + n]]
        dummy = np.zeros((1, 1, hidden_size), dtype=bfloat16)
        for i, layer in enumerate(layers):
            feed = {
                "K_cache": k_caches[i][:, : p * prefill_len] if p else dummy,
                "V_cache": v_caches[i][:, : p * prefill_len] if p else dummy,
                "indices": indices,
                "input": data,
                "mask": mask,
            }
            outputs = layer.run(None, feed, shape_group=p + 1)
            k_caches[i][:, p * prefill_len : p * prefill_len + n] = outputs[0][:, :n]
            v_caches[i][:, p * prefill_len : p * prefill_len + n] = outputs[1][:, :n]
            data = outputs[2]
    hidden = data[:, n - 1 : n]

    mask = np.zeros((1, 1, kv_cache_len + 1), dtype=np.float32).astype(bfloat16)
    mask[:, :, :kv_cache_len] -= bfloat16(65536)
    mask[:, :, :token_len] = 0
    answer = []
    for start in range(token_len, kv_cache_len + 1):
        logits = post.run(None, {"input": hidden})[0].astype(np.float32).flatten()
        answer.append(int(np.argmax(logits)))
        if answer[-1] in config["eos_token_ids"] or len(answer) == max_tokens or start == kv_cache_len:
            break
        hidden = embeds[answer[-1]].reshape(1, 1, hidden_size)
        indices = np.array([start], np.uint32).reshape(1, 1)
        for i, layer in enumerate(layers):
            feed = {"K_cache": k_caches[i], "V_cache": v_caches[i], "indices": indices, "input": hidden, "mask": mask}
            outputs = layer.run(None, feed, shape_group=0)
            k_caches[i][:, start, :] = outputs[0][:, 0]
            v_caches[i][:, start, :] = outputs[1][:, 0]
            hidden = outputs[2]
        mask[..., start] = 0
    print(tokenizer.decode(answer))


if __name__ == "__main__":
    main()
