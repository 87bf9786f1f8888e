"""What a user's mistake in a GRPO run says: one message with the reason and the remedy, and exit status 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from w2sr.cli import main
from w2sr.modules import GRPOModule
from w2sr.rollouts import EmbeddedGenerator
from w2sr.types import Rollout

GrpoConfig = Callable[..., Path]
Refused = Callable[..., str]
HERE = "tests.integration.test_grpo_errors"


def nan_for_long(rollout: Rollout) -> float:
    """A reward with a hole in it."""
    return float("nan") if len(rollout.completion.token_ids) > 3 else 1.0


def divides_by_zero(rollout: Rollout) -> float:
    """A reward that raises."""
    return 1 / 0


def constant(rollout: Rollout) -> float:
    """A reward that teaches nothing."""
    return 0.25


@pytest.fixture
def refused(
    tmp_path: Path, grpo_config: GrpoConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """The message of a fit that is refused, as it stands on the user's screen, without `error: `."""

    def message(*words: str, **changes: Any) -> str:
        with pytest.raises(SystemExit) as end:
            main(["fit", "--config", str(grpo_config(tmp_path / "run", **changes)), *words])
        assert end.value.code == 2
        printed = capsys.readouterr().err
        assert printed.count("error: ") == 1 and "Traceback" not in printed, printed
        return printed.partition("error: ")[2]

    return message


def test_a_group_of_one(refused: Refused) -> None:
    letter = refused(model__group_size=1)
    assert "group_size=1" in letter and "needs at least 2" in letter


def test_greedy_rollouts(refused: Refused) -> None:
    letter = refused(model__rollouts={"temperature": 0.0, "max_new_tokens": 12})
    assert "model.rollouts has temperature=0 and top_p=1" in letter and "set temperature > 0" in letter


def test_a_part_of_the_distribution(refused: Refused) -> None:
    assert "top_p=0.9" in refused(model__rollouts={"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 12})


def test_no_minibatch(refused: Refused) -> None:
    assert "model.minibatches=0 must be at least 1" in refused(model__minibatches=0)


def test_more_minibatches_than_groups(refused: Refused) -> None:
    message = refused(model__minibatches=4)
    assert "model.minibatches=4 divides the groups of a round, and data.step_problems=3 gives 3" in message


def test_more_problems_a_round_than_there_are(refused: Refused) -> None:
    assert "data.step_problems=7: a round asks so many different problems, and data.problems has 6" in refused(
        data__step_problems=7
    )


def test_dropout_that_sampling_does_not_have(refused: Refused) -> None:
    message = refused(model__lora={"rank": 2, "alpha": 4, "dropout": 0.25})
    assert "lora_dropout.default' of the policy has p=0.25" in message and "Set model.lora.dropout=0" in message


def test_dropout_of_the_model_itself(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OPT has it: a number that its layers hand to a function."""
    real = GRPOModule.configure_model

    def with_dropout(self: GRPOModule) -> None:
        real(self)
        assert self.policy is not None
        self.policy.blocks()[1].activation_dropout = 0.1

    monkeypatch.setattr(GRPOModule, "configure_model", with_dropout)
    assert "layers.1' of the policy has activation_dropout=0.1" in refused()


def test_no_slot(refused: Refused) -> None:
    assert "model.num_slots=0 must be at least 1" in refused(model__num_slots=0)
    engine = {"class_path": "w2sr.rollouts.Embedded", "init_args": {"num_slots": 0}}
    assert "num_slots=0 must be at least 1: so many sequences decode together." in refused(model__engine=engine)


def test_a_reward_that_is_not_a_number(refused: Refused) -> None:
    letter = refused(model__rewards={"holed": {"reward": f"{HERE}.nan_for_long"}})
    assert "model.rewards.holed failed on sample" in letter and "whose completion begins" in letter
    assert "It returned nan" in letter


def test_a_reward_that_raises_is_named_with_the_completion(refused: Refused) -> None:
    letter = refused(model__rewards={"broken": {"reward": f"{HERE}.divides_by_zero"}})
    assert "model.rewards.broken failed on sample 0 of problem" in letter and "ZeroDivisionError" in letter


def test_completions_beyond_the_context(refused: Refused) -> None:
    letter = refused(model__sampling={"max_new_tokens": 250})
    assert "model.rollouts.max_new_tokens=250" in letter and "the model has 256 positions" in letter


def test_completions_beyond_a_row(refused: Refused) -> None:
    assert "a row holds model.max_tokens=30. Raise it to" in refused(model__max_tokens=30)


def test_a_reference_policy_of_another_vocabulary(refused: Refused, tiny_world: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_world.student, other)
    config = Qwen3Config.from_pretrained(other)
    config.vocab_size += 8
    Qwen3ForCausalLM(config).save_pretrained(other)
    letter = refused(model__reference=str(other), model__objective={"kl": {"coefficient": 0.1}})
    assert f"The reference policy '{other}' has a vocabulary of {config.vocab_size} tokens" in letter
    assert "Set model.reference to a model with the student's tokenizer" in letter


def test_a_stale_engine(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose weights stay behind: its second round is a version old."""
    monkeypatch.setattr(EmbeddedGenerator, "update", lambda self, version: setattr(self, "policy_version", 0))
    letter = refused()
    assert "was written by version 0 of the policy, which is at version 1" in letter and "max_staleness=0" in letter


def test_a_stale_engine_within_max_staleness_goes_on(
    tmp_path: Path, grpo_config: GrpoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedGenerator, "update", lambda self, version: setattr(self, "policy_version", 0))
    main(["fit", "--config", str(grpo_config(tmp_path / "run", model__max_staleness=3))])
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 4


def test_the_checkpoint_of_another_kind_of_training(
    refused: Refused, tmp_path: Path, fit_config: Callable[..., Path]
) -> None:
    save = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    main(["fit", "--config", str(fit_config(tmp_path / "sft", trainer__callbacks=[save]))])
    checkpoint = next((tmp_path / "sft" / "checkpoints").glob("*.ckpt"))
    letter = refused("--ckpt_path", str(checkpoint))
    assert "The checkpoint is of supervised fine-tuning, not of GRPO" in letter


def test_rounds_that_teach_nothing_are_warned_of_with_the_cause(
    tmp_path: Path, grpo_config: GrpoConfig, tiny_world: Any
) -> None:
    """Equal rewards: the weights stay as they are, and after `dead_rounds` rounds somebody says so."""
    config = grpo_config(
        tmp_path / "run",
        model__rewards={"constant": {"reward": f"{HERE}.constant"}},
        model__dead_rounds=2,
        model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"weight_decay": 0.0}},
        trainer__callbacks=[{"class_path": "w2sr.callbacks.ExportStudent"}],
    )
    with pytest.warns(UserWarning, match=r"In 2 rounds in a row all rewards.*0\.0% are right") as told:
        main(["fit", "--config", str(config)])
    assert sum("rounds in a row" in str(warning.message) for warning in told) == 1
    before, after = (load_file(run / "model.safetensors") for run in (tiny_world.student, tmp_path / "run" / "student"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_keys_of_the_trainer_that_are_the_module_s(refused: Refused) -> None:
    assert "set model.init_args.clip_norm=0.5" in refused(trainer__gradient_clip_val=0.5)
    assert "Remove the key; the size of a step is" in refused(trainer__accumulate_grad_batches=4)


def test_a_callback_of_fine_tuning(refused: Refused) -> None:
    letter = refused(trainer__callbacks=[{"class_path": "w2sr.callbacks.Throughput"}])
    assert "Throughput measures SFTModule, and the model is GRPOModule" in letter


def test_the_beginning_of_a_key_is_no_key(refused: Refused) -> None:
    assert "Did you mean '--trainer.max_epochs'" in refused("--trainer.max_epoch=1")
    assert "unrecognized arguments: --objective.clip_lo" in refused("--model.init_args.objective.clip_lo=0.1")
