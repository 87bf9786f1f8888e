"""What the check of a model at load time costs: CPU seconds of loading and of the check, and the memory at its peak.

OMP_NUM_THREADS=1 python benchmarks/model_check.py --out docs/results/model_check.md
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000},
    "0.1B": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 49152},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936},
}
"""Random Qwen2 models; the last one has the shape of Qwen2.5-0.5B."""

MEASURE = """
import json, resource, sys, time
import torch
from w2sr.policy import check_model, load_policy
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
if sys.argv[3] == "warm":
    load_policy(sys.argv[1], dtype=sys.argv[2])
start = time.process_time()
policy = load_policy(sys.argv[1], dtype=sys.argv[2], checked=False)
loaded, before = time.process_time(), peak()
check_model(policy)
checked = time.process_time()
print(json.dumps([loaded - start, checked - loaded, before, peak()]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the Markdown page to write")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SIZES.items():
            num_parameters = save(Path(folder) / name, shape)
            for dtype in ("float32", "bfloat16"):
                figures = measured(Path(folder) / name, dtype, warm=name == "tiny")
                rows.append([name, f"{num_parameters / 1e6:,.1f}M", dtype, *(f"{figure:.3f}" for figure in figures)])
    note = (
        "Random Qwen2 models, loaded from the page cache, each in a process of its own. The tiny one is loaded once "
        "before, so that its row shows the check and not the first call of torch's functions."
    )
    head = common.head("The check of a model at load time", ("torch", "transformers"), note)
    columns = ["model", "parameters", "dtype", "load, CPU s", "check, CPU s", "peak before, GiB", "peak after, GiB"]
    common.write(args.out, f"{head}\n{common.table(columns, rows)}")


def save(folder: Path, shape: dict[str, Any]) -> int:
    """Writes a random model in float32. Returns its number of parameters."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(**shape, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=True)
    lm = Qwen2ForCausalLM(config)
    lm.save_pretrained(folder)
    return sum(parameter.numel() for parameter in lm.parameters())


def measured(folder: Path, dtype: str, *, warm: bool) -> list[float]:
    """CPU seconds to load and to check, and GiB at the peak before and after the check."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(folder), dtype, "warm" if warm else "cold"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
