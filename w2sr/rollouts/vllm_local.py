"""vLLM in this process, as an engine that a configuration names: what it is started with, and on which GPUs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from w2sr.chat import Chat
from w2sr.locations import locate_model
from w2sr.policy import DTypeName, Policy
from w2sr.ranks import together
from w2sr.rollouts.freshness import copy_tolerance
from w2sr.rollouts.protocol import Generator, PolicyGenerator, RolloutEngine
from w2sr.rollouts.vllm_generator import VLLMFollower, VLLMGenerator
from w2sr.rollouts.weight_sync import machine_folder, written
from w2sr.slurm import REQUEUE, kept_from_children

LOGPROBS_MODE = "processed_logprobs"
"""vLLM's name for log-probabilities at the temperature of sampling; its default leaves the temperature out."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VLLM(RolloutEngine):
    """vLLM in this process: one engine for each rank of the Trainer.

    Data parallel × tensor parallel: every rank has an engine of its own and its own share of the problems, and rank i
    uses the GPUs i·t … i·t + t − 1, where t is `tensor_parallel_size`; so `trainer.devices` is the number of GPUs / t.

    Attributes:
        dtype: dtype of the weights.
        tensor_parallel_size: GPUs that share one copy of the model.
        gpu_memory_utilization: share of a GPU's memory (of the RAM, in a CPU build) for weights and KV cache.
        max_model_len: positions to plan for, prompt and completion; None takes all that the model has.
        enforce_eager: no CUDA graphs and no compilation: starts faster, runs slower.
        trust_remote_code: allow code from the model's repository.
        engine_args: more arguments of `vllm.LLM`, such as `{max_num_seqs: 64, kv_cache_memory_bytes: 1000000000}`.
    """

    dtype: DTypeName = "float32"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    enforce_eager: bool = False
    trust_remote_code: bool = False
    engine_args: dict[str, Any] | None = None

    @contextmanager
    def open(self, model: str, chat: Chat, device: torch.device) -> Iterator[Generator]:
        """See `RolloutEngine.open`.

        Raises:
            ValueError: vLLM is not installed, or it refuses the model or the arguments.
        """
        llm_class = _import_llm()
        with _own_gpus(device, self.tensor_parallel_size), kept_from_children(REQUEUE):
            llm = llm_class(model=str(locate_model(model)), **self._arguments())
        try:
            chat.check_vocabulary(llm.model_config.get_vocab_size())
            yield VLLMGenerator(llm, chat)
        finally:
            llm.llm_engine.engine_core.shutdown()

    @contextmanager
    def follow(self, policy: Policy, chat: Chat, device: torch.device) -> Iterator[PolicyGenerator]:
        """See `RolloutEngine.follow`. Every rank has an engine of its own with whole weights; those of one machine read
        them from the same files in memory.

        On a GPU, which the trainer uses too, the engine frees its memory while it rests (vLLM's sleep mode). That was
        not run, and the log says so. Leave room for training in `gpu_memory_utilization`.

        Raises:
            ValueError: vLLM is not installed, or it refuses the arguments.
        """
        llm_class = _import_llm()
        on_gpu = device.type == "cuda"
        if on_gpu:
            _log.warning(
                "vLLM follows the policy on %s: its sleep and its reloading of weights were never run on a GPU. After "
                "every update a probe compares its log-probabilities with the policy's.",
                device,
            )
        more = {"logprobs_mode": LOGPROBS_MODE, "enable_sleep_mode": on_gpu}

        def start() -> Any:
            with _own_gpus(device, self.tensor_parallel_size), kept_from_children(REQUEUE):
                return llm_class(model=str(folder), **self._arguments(more))

        with machine_folder(policy) as (folder, writes):
            if writes:
                chat.save(folder)
            with written(policy, folder if writes else None):
                llm = together(start)
            try:
                generator = VLLMGenerator(llm, chat, policy_version=-1, follows=True)
                tolerance = copy_tolerance(policy, self.dtype)
                yield VLLMFollower(
                    llm, generator, policy, chat, folder, writes=writes, sleeps=on_gpu, tolerance=tolerance
                )
            finally:
                llm.llm_engine.engine_core.shutdown()

    def _arguments(self, following: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Keywords of `vllm.LLM`. Weights are safetensors only, as everywhere: other formats are pickles."""
        ours = {
            "dtype": self.dtype,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "enforce_eager": self.enforce_eager,
            "trust_remote_code": self.trust_remote_code,
            **(following or {}),
        }
        more = self.engine_args or {}
        if twice := sorted(ours.keys() & more.keys()):
            raise ValueError(f"engine_args sets {', '.join(twice)}, which the engine VLLM has as its own argument.")
        return {"load_format": "safetensors", **ours, **more}


def _import_llm() -> Any:
    try:
        from vllm import LLM
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ValueError(
            "The engine w2sr.rollouts.VLLM needs vLLM, which is not installed here. Install it: pip install "
            "'w2sr[vllm]'. Or use the engine w2sr.rollouts.OpenAIServer with a server elsewhere, which needs only "
            "pip install 'w2sr[server]'."
        ) from error
    return LLM


@contextmanager
def _own_gpus(device: torch.device, tensor_parallel_size: int) -> Iterator[None]:
    """Shows the processes that vLLM starts only the GPUs of this rank. They inherit CUDA_VISIBLE_DEVICES from us."""
    if device.type != "cuda":
        yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = rank_gpus(
        before, device.index or 0, tensor_parallel_size, torch.cuda.device_count()
    )
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def rank_gpus(visible: str | None, index: int, tensor_parallel_size: int, num_gpus: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES for the engine of the rank on GPU `index` of this node.

    >>> rank_gpus("4,5,6,7", 1, 2, 4)
    '6,7'
    """
    names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
    own = names[index * tensor_parallel_size : (index + 1) * tensor_parallel_size]
    if len(own) < tensor_parallel_size:
        raise ValueError(
            f"The rank on GPU {index} needs {tensor_parallel_size} GPUs for tensor_parallel_size="
            f"{tensor_parallel_size}, from number {index * tensor_parallel_size} on; this node has {len(names)}. Set "
            f"trainer.devices={len(names) // tensor_parallel_size}, or a smaller tensor_parallel_size."
        )
    return ",".join(own)
