"""Every configuration parses; every overlay fits over every base and leaves its module's class as it is."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

from w2sr.cli import EPILOG, W2SRCLI, RunConfig, register_strategies
from w2sr.selection.strategy import gates_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BASES = sorted(CONFIGS.glob("*.yaml"))
OVERLAYS = sorted(path for folder in ("model", "data", "trainer") for path in (CONFIGS / folder).glob("*.yaml"))

SELECTIONS = sorted((CONFIGS / "selection").glob("*.yaml"))


def parse(*files: Path, extra: tuple[str, ...] = ()) -> Any:
    """The configuration of `fit`, `test` or `predict` as the command line sees it, nothing instantiated."""
    register_strategies()
    verb = {"eval": "test", "distill": "predict"}.get(files[0].stem, "fit")

    class ParseOnly(W2SRCLI):
        def instantiate_classes(self) -> None:
            self.parsed = self.config[verb]

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    arguments = [verb, *(word for file in files for word in ("--config", str(file))), *extra]
    return ParseOnly(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=RunConfig,
        parser_kwargs={"epilog": EPILOG},
        args=arguments,
        held=ExitStack(),
    ).parsed


def test_there_are_bases_and_overlays() -> None:
    assert {path.stem for path in BASES} >= {"w2sr", "w2sr_p", "w2sr_n", "eval", "distill"}
    assert len(OVERLAYS) >= 12


@pytest.mark.parametrize("base", BASES, ids=lambda path: path.stem)
def test_every_overlay_fits_over_every_base(base: Path) -> None:
    alone, same = parse(base), set()
    for overlay in OVERLAYS:
        both = parse(base, overlay)
        assert both.model.class_path == alone.model.class_path, overlay
        assert both.data.class_path == alone.data.class_path, overlay
        (key,) = yaml.safe_load(overlay.read_text())
        if both[key] == alone[key]:
            same.add(overlay.stem)
    assert same <= {"miniature", "cpu"}, "only what a base may have already changes nothing"


def test_no_overlay_changes_nothing_over_every_base() -> None:
    alone = {base: parse(base) for base in BASES}
    for overlay in OVERLAYS:
        if overlay.stem in ("miniature", "cpu"):
            (key,) = yaml.safe_load(overlay.read_text())
            assert any(parse(base, overlay)[key] != alone[base][key] for base in BASES), overlay


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_overlay_has_one_top_level_key_and_no_class_path(overlay: Path) -> None:
    content = yaml.safe_load(overlay.read_text())
    assert list(content) == [overlay.parent.name]
    assert "class_path" not in overlay.read_text()


def test_every_selection_fits_over_a_base_and_its_gates_are_known() -> None:
    assert len(SELECTIONS) >= 8
    for overlay in SELECTIONS:
        content = yaml.safe_load(overlay.read_text())
        assert list(content) == ["data"] and set(content["data"]["init_args"]) <= {"keep", "gates"}, overlay
        gates = content["data"]["init_args"]["gates"]
        parsed = parse(CONFIGS / "w2sr.yaml", overlay).data.init_args.gates
        for key, value in gates.items():
            if key == "mix":
                assert [set(part) <= set(vars(whole)) for part, whole in zip(value, parsed[key], strict=True)], overlay
            else:
                assert _plain(parsed[key]) == value, (overlay, key)
        gates_of(gates)


def _plain(value: Any) -> Any:
    """Bands are tuples after parsing, and lists in YAML."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_the_papers_scale_is_what_the_overlays_say() -> None:
    files = ["w2sr_p.yaml", "model/qwen2.5-math-7b.yaml", "data/math_l3to5.yaml", "trainer/fsdp2.yaml"]
    parsed = parse(*(CONFIGS / file for file in files))
    assert parsed.model.init_args.student == "Qwen/Qwen2.5-Math-7B"
    assert parsed.model.init_args.stop_token == "<|im_end|>"
    assert parsed.model.init_args.learning_rates["sft"] == 2e-5
    assert parsed.data.init_args.step_sequences == 128
    assert parsed.data.init_args.keep == "P"
    assert list(parsed.data.init_args.benchmarks) == ["math500"]
    assert parsed.trainer.strategy == "fsdp2"


def test_the_three_filters_differ_in_nothing_else() -> None:
    texts = [(CONFIGS / f"{name}.yaml").read_text().splitlines()[1:] for name in ("w2sr_p", "w2sr_n", "w2sr")]
    for other in texts[1:]:
        changed = [(a.strip(), b.strip()) for a, b in zip(texts[0], other, strict=True) if a != b]
        assert [a.split(":")[0] for a, _ in changed] == ["keep", "default_root_dir"]


def test_both_modules_have_the_keys_of_kernels() -> None:
    for name in ("w2sr", "grpo"):
        parsed = parse(CONFIGS / f"{name}.yaml", extra=("--model.init_args.kernels.compile=true",))
        assert parsed.model.init_args.kernels.as_dict() == {"compile": True, "liger": False}
