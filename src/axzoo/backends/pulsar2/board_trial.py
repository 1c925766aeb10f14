"""Run this on the board, in its folder: `python3 board_trial.py`. It writes board.json, to send with report.json.

It needs the board's Python engine (pyaxengine), numpy and ml_dtypes, and nothing of axzoo. Not run on a board yet.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

FILES = ("layer_0.axmodel", "layer_1.axmodel", "made_layer_1.axmodel")
REPEATS = 20


def read_inputs(folder: Path, tensors: dict[str, Any]) -> dict[str, Any]:
    import ml_dtypes
    import numpy as np

    dtypes = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32, "uint32": np.uint32}
    return {
        name: np.fromfile(folder / tensor["file"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors.items()
    }


def main() -> int:
    import axengine  # type: ignore[import-not-found]

    folder = Path(__file__).parent
    groups = json.loads((folder / "inputs.json").read_text())
    names = [name for name in FILES if (folder / name).exists()]
    sessions = {name: axengine.InferenceSession(str(folder / name)) for name in names}  # all of them in one process
    found: dict[str, Any] = {"loaded": names, "groups": []}
    for number, tensors in enumerate(groups):
        inputs = read_inputs(folder, tensors)
        outputs, milliseconds = {}, {}
        for name, session in sessions.items():
            outputs[name] = [array.copy() for array in session.run(None, inputs, shape_group=number)]
            began = time.perf_counter()
            for _ in range(REPEATS):
                session.run(None, inputs, shape_group=number)
            milliseconds[name] = round((time.perf_counter() - began) * 1000 / REPEATS, 3)
        own, made = outputs["layer_1.axmodel"], outputs.get("made_layer_1.axmodel")
        equal = None if made is None else [a.tobytes() == b.tobytes() for a, b in zip(own, made, strict=True)]
        other = [a.tobytes() != b.tobytes() for a, b in zip(own, outputs["layer_0.axmodel"], strict=True)]
        found["groups"].append({"equal": equal, "layers_differ": any(other), "milliseconds": milliseconds})
        print(f"group {number}: equal {equal}, milliseconds {milliseconds}", flush=True)
    (folder / "board.json").write_text(json.dumps(found, indent=2) + "\n")
    passed = all(all(group["equal"] or [False]) for group in found["groups"])
    print("the made file gives the same outputs" if passed else "the made file gives OTHER outputs, or does not exist")
    return not passed


if __name__ == "__main__":
    sys.exit(main())
