"""Real traces of other people's models: read, verified, selected, packed, trained on, resumed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from w2sr.chat import Chat
from w2sr.cli import main
from w2sr.packing import pack_row, plan_epoch
from w2sr.selection import select
from w2sr.traces import read_traces
from w2sr.types import IGNORE_INDEX, Trace
from w2sr.verify import Verifier

COLUMNS = {"problem": "problem", "completion": "response", "reference_answer": "gold", "teacher": "model"}
STEPS = [0, 1, 2, 3]
Scalars = Callable[[Path, str], dict[int, float]]


def traces_of(folder: Path, limit: int) -> list[dict[str, Any]]:
    """Both files of GSM8K outputs as a config names them; how their completions ended and their lengths are unknown."""
    return [
        {
            "path": str(folder / "zeroeval_gsm8k_weak_to_strong.jsonl.gz"),
            "columns": {**COLUMNS, "problem_id": "id"},
            "rules": ["json:answer"],
            "stop_text": ["</s>"],
            "limit": limit,
        },
        {
            "path": str(folder / "openai_gsm8k_example_model_solutions.jsonl.gz"),
            "columns": {**COLUMNS, "source": "=gpt3"},
            "rules": ["after:A:"],
            "limit": limit,
        },
    ]


def small_student(folder: Path, tokenizer: Path, architecture: str) -> Path:
    """A random model of two layers with a real tokenizer."""
    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    config_class, model_class = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[
        architecture
    ]
    torch.manual_seed(7)
    config = config_class(
        vocab_size=len(loaded),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model_class(config).save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("tokenizer", "architecture", "keep"),
    [("qwen", "qwen2", "P"), ("smollm2-135m-instruct", "qwen3", "N")],
)
def test_a_run_on_real_traces_and_its_continuation(
    shared_data: Path,
    tmp_path: Path,
    fit_config: Callable[..., Path],
    scalars: Scalars,
    tokenizer: str,
    architecture: str,
    keep: str,
) -> None:
    student = small_student(tmp_path / "student", shared_data / "tokenizers" / tokenizer, architecture)
    checkpoint = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    checkpoint["init_args"] = {"every_n_train_steps": 2, "save_top_k": -1, "filename": "{step}"}  # type: ignore[assignment]
    changes = {
        "model__student": str(student),
        "model__template": "qwen-base",
        "data__traces": traces_of(shared_data / "traces", limit=40),
        "data__keep": keep,
        "data__gates": {"finish": "stop_or_unknown", "max_tokens": 180},
        "data__max_tokens": 1024,
        "data__step_sequences": 6,
        "data__window": 2,
        "trainer__max_epochs": 4,
        "trainer__max_steps": 4,
        "trainer__callbacks": [checkpoint, {"class_path": "w2sr.callbacks.ExportStudent"}],
    }
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    main(["fit", "--config", str(fit_config(whole, **changes))])
    record = json.loads((whole / "selection.json").read_text())
    gates = {row["gate"]: row for row in record["table"]["gates"]}
    assert gates[f"keep={keep}"]["num_in"] == 80
    assert gates["max_tokens=180"]["num_removed"] > 0, "the student's tokenizer counted what the files do not"
    assert record["num_train_traces"] >= 20
    losses = scalars(whole, "train/loss")
    assert list(losses) == STEPS
    assert abs(losses[STEPS[0]] - np.log(len(Chat.load(student, template="qwen-base").vocabulary))) < 0.5
    exported = GenerationConfig.from_pretrained(str(whole / "student"))
    assert (
        AutoTokenizer.from_pretrained(str(whole / "student")).convert_tokens_to_ids("<|im_end|>")
        in exported.eos_token_id
    )

    (state,) = whole.rglob("step=2.ckpt")
    main(["fit", "--config", str(fit_config(rest, **changes)), "--ckpt_path", str(state)])
    continued = scalars(rest, "train/loss")
    assert continued == {step: losses[step] for step in STEPS[2:]}


def judged(shared_data: Path, file: str, verifier: Verifier, **columns: str) -> list[Trace]:
    traces, _ = read_traces(shared_data / "traces" / file, {**COLUMNS, **columns}, source="real", stop_text=("</s>",))
    traces = traces[:400]
    with verifier:
        verdicts = verifier.verify_all([(trace.completion, trace.reference_answer) for trace in traces])
    return [replace(t, verdict=v.label, answer=v.answer) for t, v in zip(traces, verdicts, strict=True)]


def test_the_filters_share_out_real_traces(shared_data: Path) -> None:
    traces = judged(shared_data, "openai_gsm8k_example_model_solutions.jsonl.gz", Verifier(["after:A:"]))
    ungated: dict[str, Any] = {"finish": "any", "not_looping": False, "dedupe": False}
    kept = {keep: len(select(traces, keep=keep, **ungated).traces) for keep in ("P", "N", "N_paper", "all")}  # type: ignore[arg-type]
    counts = Counter(trace.verdict for trace in traces)
    assert kept == {"P": counts["correct"], "N": counts["incorrect"], "N_paper": 400 - counts["correct"], "all": 400}
    assert 0.3 < counts["correct"] / 400 < 0.5


def test_an_r1_distillation_that_was_cut_off(shared_data: Path) -> None:
    """52 of 112 are marked as cut off; 23 more stop inside of a sentence and have no answer after their thinking."""
    file = "r1_distill_longcot_with_token_ids.jsonl.gz"
    traces = judged(shared_data, file, Verifier(prompt_opens_think=True), finish_reason="finished")
    assert Counter((t.finish_reason, t.verdict) for t in traces) == {
        ("length", "no_answer"): 52,
        ("stop", "no_answer"): 23,
        ("stop", "correct"): 37,
    }
    assert [row.num_out for row in select(traces, keep="all", has_answer=True).table][:3] == [112, 60, 37]
    with pytest.raises(ValueError, match=r"(?s)keeps no trace.*keep=N +112 +112 +0"):
        select(traces, keep="N")


@pytest.mark.parametrize("tokenizer", ["qwen", "smollm2-135m-instruct"])
def test_real_segments_in_rows(shared_data: Path, tokenizer: str) -> None:
    """Tokens are conserved, every row is within its length, and rows hold what the tokenizer wrote."""
    chat = Chat.load(shared_data / "tokenizers" / tokenizer, template="qwen-base")
    traces, _ = read_traces(shared_data / "traces" / "qwen25math_example_math100.jsonl.gz", COLUMNS, source="math")
    traces = traces[:200]
    segments = chat.segments(traces)
    plan = plan_epoch(
        np.array([len(segment) for segment in segments]), seed=3, epoch=1, max_tokens=2500, step_sequences=64, window=3
    )
    rows = [row for step in range(plan.num_steps) for row in plan.step_rows(step)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(200))
    packed = pack_row([segments[member] for member in rows[0]])
    assert len(packed.input_ids) == sum(len(segments[member]) for member in rows[0]) <= 2500
    start, stop = packed.cu_seqlens[:2].tolist()
    completion = packed.labels[start:stop]
    assert chat.decode(completion[completion != IGNORE_INDEX]) == traces[rows[0][0]].completion
    assert plan.fill() > 0.85
