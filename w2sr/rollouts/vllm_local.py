"""vLLM in this process: `vllm.LLM`, fed with our token ids and stepped by us, so that completions stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from w2sr.chat import Chat
from w2sr.locations import locate_model
from w2sr.policy import DTypeName
from w2sr.rollouts.protocol import Generator, RolloutEngine, check_positions
from w2sr.rollouts.sampling import request_seed
from w2sr.types import Completion, SampleRequest, Sampling


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
        with _own_gpus(device, self.tensor_parallel_size):
            llm = llm_class(model=str(locate_model(model)), **self._arguments())
        try:
            chat.check_vocabulary(llm.model_config.get_vocab_size())
            yield VLLMGenerator(llm, chat)
        finally:
            llm.llm_engine.engine_core.shutdown()

    def _arguments(self) -> dict[str, Any]:
        """Keywords of `vllm.LLM`. Weights are safetensors only, as everywhere: other formats are pickles."""
        ours = {
            "dtype": self.dtype,
            "tensor_parallel_size": self.tensor_parallel_size,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "max_model_len": self.max_model_len,
            "enforce_eager": self.enforce_eager,
            "trust_remote_code": self.trust_remote_code,
        }
        more = self.engine_args or {}
        if twice := sorted(ours.keys() & more.keys()):
            raise ValueError(f"engine_args sets {', '.join(twice)}, which the engine VLLM has as its own argument.")
        return {"load_format": "safetensors", **ours, **more}


class VLLMGenerator:
    """Completions of one `vllm.LLM`. One stream at a time.

    `LLM.generate` returns only when all requests are finished, so we call what it is made of: `LLMEngine.add_request`
    and `LLMEngine.step`. Beside chunks of `LLM.generate` this yields each completion when it is finished, and no
    batch waits for its slowest member.
    """

    def __init__(self, llm: Any, chat: Chat, policy_version: int = 0) -> None:
        self.engine, self.renderer = llm.llm_engine, llm.renderer
        self.max_model_len: int = llm.model_config.max_model_len
        self.stop_token_ids = list(chat.stop_token_ids)
        self.decode = chat.decode
        self.policy_version = policy_version
        self._num_asked = 0

    def stream(self, requests: Sequence[SampleRequest], sampling: Sampling) -> Iterator[Completion]:
        """See `Generator.stream`. Raises ValueError where prompt and completion exceed the model's positions."""
        if not requests:
            return
        check_positions(requests, sampling, self.max_model_len)
        waiting: dict[str, SampleRequest] = {}
        prompts = self.renderer.render_cmpl([{"prompt_token_ids": list(request.prompt_ids)} for request in requests])
        try:
            for request, prompt in zip(requests, prompts, strict=True):
                name = str(self._num_asked)
                self._num_asked += 1
                self.engine.add_request(name, prompt, self._params(request, sampling))
                waiting[name] = request
            while waiting:
                for output in self.engine.step():
                    if output.finished and output.request_id in waiting:
                        yield self._completion(waiting.pop(output.request_id), output.outputs[0])
        finally:
            self.engine.abort_request(list(waiting))

    def _params(self, request: SampleRequest, sampling: Sampling) -> Any:
        """Sampling parameters of one request. Only our stop tokens end it: `ignore_eos` turns vLLM's own off."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens - request.num_done,
            seed=request_seed(sampling, request, self.policy_version),
            stop_token_ids=self.stop_token_ids,
            ignore_eos=True,
            stop=list(sampling.stop_text),
            include_stop_str_in_output=True,
            detokenize=bool(sampling.stop_text),
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, request: SampleRequest, output: Any) -> Completion:
        if output.finish_reason not in ("stop", "length"):
            raise RuntimeError(
                f"vLLM ended sample {request.sample_index} of problem '{request.problem_id}' with "
                f"{output.finish_reason!r} after {len(output.token_ids):,} tokens, not with 'stop' or 'length'."
            )
        token_ids = tuple(output.token_ids)
        text = self.decode(token_ids[:-1] if token_ids[-1] in self.stop_token_ids else token_ids)
        return Completion(request.problem_id, request.sample_index, token_ids, text, output.finish_reason)


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
