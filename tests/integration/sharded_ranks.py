"""What two gloo processes find with a sharded policy, one file a rank: `python sharded_ranks.py RANK FOLDER`.

The test beside it compares what they found with a policy that is whole.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh

from w2sr import sharding
from w2sr.chat import Chat
from w2sr.modules.optimization import gradient_sync
from w2sr.packing import pack_row
from w2sr.policy import LoRA, Policy, RefusedModel, check_model, empty_policy
from w2sr.rollouts import EmbeddedGenerator
from w2sr.rollouts.weight_sync import written
from w2sr.sharding import Sharding, load_shards, save_policy, shard_policy
from w2sr.types import PackedBatch, SampleRequest, Sampling

TEXTS = (
    ("How many has Tom?", "Tom has 12. So Tom has \\boxed{12}."),
    ("Today Zoe has 7 eggs. How many are left?", "Zoe has 7."),
)
LORA, STOP = LoRA(rank=3, alpha=9), 2
CLIP_NORM = 0.5
SAMPLING = Sampling(temperature=1.0, max_new_tokens=24, seed=5)
SHARES = {"uneven": (5, 2), "one idle": (0, 3)}
"""Requests of the two ranks."""


def row(chat: Chat, rank: int) -> PackedBatch:
    """The row of a rank: the first has one segment, the second two."""
    return pack_row([chat.segment(*TEXTS[number], "x") for number in range(rank + 1)])


def requests(chat: Chat, name: str) -> list[SampleRequest]:
    """Requests of both ranks, with prompts of different lengths."""
    return [
        SampleRequest(f"{name}/{number}", 0, tuple(chat.prompt_ids(f"{number} " * (1 + 3 * number) + "eggs?")))
        for number in range(sum(SHARES[name]))
    ]


def adapt(policy: Policy) -> None:
    """Adapters and a row that are not zero, the same on every rank and in one process."""
    policy.add_lora(LORA, STOP)


def fill_adapters(policy: Policy) -> None:
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or parameter is policy.stop_row_E):
                local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                local.fill_(0.05)


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, Any] = {}
    for name in ("tied", "untied"):
        for compute in (None, torch.bfloat16):
            policy = sharded(folder / name, Sharding(mesh, torch.device("cpu"), compute), "selective")
            found[f"{name} {compute}"] = measured(policy, row(Chat.load(folder / name), rank))
        found[f"{name} local"] = sum(p.to_local().numel() for p in policy.parameters())  # type: ignore[attr-defined]
        found[f"{name} all"] = sum(p.numel() for p in policy.parameters())
    chat = Chat.load(folder / "untied")
    whole = Sharding(mesh, torch.device("cpu"))
    policy = sharded(folder / "untied", whole)
    found["probe"] = refusal_of_the_probe(policy)
    for name, (first, _) in SHARES.items():
        mine = requests(chat, name)[:first] if rank == 0 else requests(chat, name)[first:]
        generator = EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode, num_slots=2)
        found[name] = {one.problem_id: one.token_ids for one in generator.stream(mine, SAMPLING)}
    too_long = [SampleRequest("long", 0, (1,) * 300)] if rank == 0 else requests(chat, "uneven")[:1]
    try:
        list(EmbeddedGenerator(policy, chat.stop_token_ids, chat.decode).stream(too_long, SAMPLING))
    except ValueError as error:
        found["refusal"] = str(error)
    policy = empty_policy(folder / "tied")
    adapt(policy)
    shard_policy(policy, Sharding(mesh, torch.device("cpu"), cpu_offload=True))
    load_shards(policy, folder / "tied")
    found["B is zero"] = all(not p.any() for n, p in whole_state(policy).items() if "lora_B" in n or "stop_row" in n)
    fill_adapters(policy)
    found["lora"], found["adapters"] = measured(policy, row(chat, rank)), whole_state(policy)
    save_policy(policy, folder / "exported", chat)
    (folder / f"copied{rank}").mkdir()
    for writers in ((0,), (0, 1)):  # one writes for both, as for a server, or each for itself
        with written(policy, folder / f"copied{rank}" if rank in writers else None):
            found[f"copy by {len(writers)}"] = read_copy(folder / f"copied{rank}")
    found["full disk"] = refusal_of_a_full_disk(policy, folder / "copied0" if rank == 0 else None)
    torch.save(found, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


def read_copy(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a folder; none of the rank that writes none."""
    file = folder / "model.safetensors"
    return load_file(file) if file.exists() else {}


def refusal_of_a_full_disk(policy: Policy, folder: Path | None) -> str:
    """What each rank raises where the one that writes cannot, before the last weight is gathered."""

    def write(folder: Path, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        next(weights)
        raise OSError(errno.ENOSPC, "No space left on device")

    real, sharding.write_weights = sharding.write_weights, write
    try:
        with written(policy, folder):
            return "nothing"
    except (OSError, RuntimeError) as error:
        return str(error)
    finally:
        sharding.write_weights = real


def sharded(folder: Path, sharding: Sharding, recompute: Any = False) -> Policy:
    policy = empty_policy(folder)
    policy.recompute(recompute)
    shard_policy(policy, sharding)
    load_shards(policy, folder)
    check_model(policy)
    return policy


def refusal_of_the_probe(policy: Policy) -> str:
    """What each rank raises where a layer reads over the ends of segments."""
    hook = policy.blocks()[0].register_forward_hook(lambda module, given, out: out + out.roll(1, 1))
    try:
        check_model(policy)
    except RefusedModel as error:
        return str(error)
    finally:
        hook.remove()
    return "nothing"


def whole_state(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.full_tensor().detach() for name, p in policy.named_parameters()}  # type: ignore[attr-defined]


def measured(policy: Policy, batch: PackedBatch) -> dict[str, Any]:
    """Log-probabilities of this rank's row, the gradient of the sum over ranks, its norm, and it clipped."""
    logprobs = policy(batch).detach()
    for number in range(2):  # two micro-steps: gradients of shards are summed
        with gradient_sync(policy, last=number == 1):
            (policy(batch, reduction="sum") * 2 / 2).backward()  # averaged over 2 ranks, halved by the second pass
    norm = torch.nn.utils.clip_grad_norm_([p for p in policy.parameters() if p.grad is not None], CLIP_NORM)
    clipped = {name: p.grad.full_tensor() for name, p in policy.named_parameters() if p.grad is not None}  # type: ignore[attr-defined]
    return {"logprobs": logprobs, "norm": norm.full_tensor(), "clipped": clipped}  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
