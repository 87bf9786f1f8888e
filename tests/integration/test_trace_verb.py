"""`traces` as a person types it: what is printed at 80 columns, what is verified first, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from w2sr.cli import main
from w2sr.traces import write_store
from w2sr.types import Trace


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["traces", *words])
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        main(["traces", *words])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """13 traces: 7 right, 3 wrong (one cut off), 1 without answer, and 2 right ones of another teacher."""
    traces = []
    for number in range(13):
        wrong, silent = 7 <= number < 10, number == 10
        answer = None if silent else str(number + wrong)
        traces.append(
            Trace(
                f"p{number}",
                "sums",
                f"What is {number} + 0?",
                str(number),
                "organisation/weak" if number < 11 else "\x1b[31mother",
                "I do not know." if silent else rf"\boxed{{{answer}}}",
                "length" if number == 7 else "stop",
                num_tokens=20 + number,
                answer=answer,
                answer_rule="" if silent else "boxed",
                verdict="no_answer" if silent else "incorrect" if wrong else "correct",
                grader="label-free:majority" if number >= 11 else "exact",
            )
        )
    write_store(tmp_path / "store", traces)
    return tmp_path / "store"


def test_the_summary_line_by_line(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.parent)
    # by hand: 9 of 13 right; of the wrong ones one was cut off; lengths 20 to 32 fill seven bins of two
    assert printed(capsys, "store") == dedent(
        """\
        store
        13 traces of 13 problems

        teacher            traces  correct  incorrect  no answer    right
        organisation/weak      11        7          3          1   63.6 %
        ?[31mother              2        2          0          0  100.0 %

        source  traces  correct  incorrect  no answer   right
        sums        13        9          3          1  69.2 %

        tokens  traces  median 26, longest 32
         20-21       2  ########################################
         22-23       2  ########################################
         24-25       2  ########################################
         26-27       2  ########################################
         28-29       2  ########################################
         30-31       2  ########################################
         32-33       1  ####################

        How they ended: stop 12, length 1; 7.7 % of those that are known were cut off.
        Loops: 0 (0.0 %) end in a repetition.

        answer found by  traces
        boxed                12

        Judged without reference answers:
        grader               traces  correct    right
        label-free:majority       2        2  100.0 %

        gates of keep=P, at their defaults  in  removed  out
        keep=P                              13        4    9
        finish=stop                          9        0    9
        not_looping                          9        0    9
        dedupe                               9        0    9

        gates of keep=N, at their defaults  in  removed  out
        keep=N                              13       10    3
        finish=stop                          3        1    2
        not_looping                          2        0    2
        dedupe                               2        0    2

        To read them: add --out FILE.html for a page to browse.
        """
    )


def test_long_names_wrap_and_numbers_stay_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem": f"{at}?", "completion": f"\\boxed{{{at}}}", "reference_answer": "1", "teacher": f"t{at % 15}" * 40}
        for at in range(1_500)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = printed(capsys, str(tmp_path / "many.jsonl"), "--rules", "boxed", "--kind", "exact")
    assert max(map(len, text.splitlines())) <= 80
    assert "Verified now, by the rules boxed: 1,500 traces." in text
    assert "(3 more)" in text and "1,499" in text
    assert "none is known to have stopped by itself" in text and "Gates of keep=P, at their defaults: refused." in text
    assert ["finish=stop", "1", "1", "0"] in [line.split() for line in text.splitlines()]


def test_foreign_traces_are_read_as_they_are_or_verified_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"q": "1 + 1?", "r": r"so \boxed{2.0}", "gold": "2"}, {"q": "1 + 2?", "r": "4", "gold": "3"}]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    words = [str(file), "--columns", "problem=q", "completion=r", "reference_answer=gold", "teacher==me"]
    text = printed(capsys, *words)
    assert "Without a verdict: 2 traces; --rules boxed verifies them first." in text
    assert "me            2           2      -" in text and "gates of" not in text
    text = printed(capsys, *words, "--rules", "boxed")
    assert "me            2        1          1  50.0 %" in text and "Without a verdict" not in text
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": "1?", "output": "####1", "gt_answer": "1"}]))
    text = printed(
        capsys, str(alpaca), "--format", "alpaca", "--source", "hand", "--rules", "hash", "--on_bad_row=skip"
    )
    assert "1 trace of 1 problem\n" in text
    assert ["hand", "1", "1", "100.0", "%"] in [line.split() for line in text.splitlines()]


def test_one_file_with_several_kinds_is_read_by_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem": "1?", "completion": "####1", "reference_answer": "so it is\n#### 1", "task": "sum"},
        {"problem": "Is it?", "completion": "The answer is yes.", "reference_answer": True, "task": "logic"},
        {"problem": "Which?", "completion": r"\boxed{B}", "reference_answer": "B", "task": "choice"},
        {"problem": "How much?", "completion": r"\boxed{9.9}", "reference_answer": 10, "task": "number"},
    ]
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"data": rows}))
    for words in (
        ["--where", "task=sum", "--rules", "hash", "--reference_rule", "hash"],
        ["--where", "task=logic", "--rules", "yes_no", "--kind", "yes_no"],
        ["--where", "task=[choice]", "--rules", "boxed", "--kind", "choice"],
        ["--where", "task=number", "--rules", "boxed", "--kind", "number", "--tolerance", "0.2", "0"],
    ):
        text = printed(capsys, str(file), *words)
        assert "1 trace of 1 problem" in text and "100.0 %" in text, text
        main(["audit", str(file), *words])
        audited = capsys.readouterr().out
        assert f"Audit of {file}: 1 traces, 1 problems" in audited
        assert "Judged wrong or without answer, and perhaps right: 0" in audited, audited
    for words, message in (
        (["--where", "task=sun"], "none of 4 rows passes where: task must be 'sun', and there are 'sum', 'logic'"),
        (["--where", "task"], "--where 'task' is not COLUMN=VALUE."),
        (["--kind", "choice"], "nothing is verified. Add --rules boxed."),
        (["--rules", "boxed", "--tolerance", "1", "0"], "kind 'math' has no tolerance"),
    ):
        assert message in refused(capsys, str(file), *words)


def test_bad_references_are_refused_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"problem": f"{at}?", "completion": r"\boxed{1}", "reference_answer": gold} for at, gold in enumerate(["1", ""])
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert "1 of 2 problems have a reference answer" in refused(capsys, str(file), "--rules", "boxed")
    text = printed(capsys, str(file), "--rules", "boxed", "--on_bad_reference", "skip")
    assert "Left out, because the reference answer cannot be used: 1 trace." in text
    assert "Verified now, by the rules boxed: 1 trace." in text


def test_a_page_is_written_and_replaced(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert f"Wrote {out}: 13 traces, 0.0 MiB." in printed(capsys, str(store), "--out", str(out))
    first = out.read_bytes()
    assert f"Replaced {out}: a sample of 5 traces" in printed(capsys, str(store), "--out", str(out), "--limit", "5")
    assert b"<strong>A sample:</strong> 5 of 13 traces" in out.read_bytes()
    printed(capsys, str(store), "--out", str(out), "--limit", "500")
    assert out.read_bytes() == first


def test_what_cannot_be_is_one_message(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").touch()
    for words, message in {
        ("runs/nowhere",): "error: there is no trace store or file 'runs/nowhere' (working directory",
        (str(tmp_path / "empty"),): "is a directory, but no trace store: no manifest.json and no journal.",
        (str(tmp_path / "empty.jsonl"),): "empty.jsonl",
        (str(store), "--columns", "problem=q"): "is a trace store. Remove columns",
        (str(store), "--where", "source=sums"): "is a trace store. Remove columns",
        (str(store), "--reference_rule", "hash"): "is a trace store, whose reference answers are final. Remove --ref",
        (str(store), "--columns", "problem"): "--columns 'problem' is not FIELD=COLUMN.",
        (str(store), "--columns", "a=b", "a=c"): "--columns names a twice, as b and as c.",
        (str(store), "--out", str(tmp_path / "no" / "x.html")): f"there is no directory {tmp_path / 'no'}. Make it",
        (str(store), "--out", str(tmp_path)): "is a directory. Name a file in it",
        (str(store), "--limit", "3"): "--limit 3 is for the page, and there is none.",
        (str(store), "--limit", "0", "--out", str(tmp_path / "x.html")): "--limit 0 asks for no trace",
        (str(store), "--rules", "boxes"): "Unknown extraction rule 'boxes'. Did you mean boxed?",
    }.items():
        error = refused(capsys, *words)
        assert error.startswith("error: ") and message in error, (words, error)
        assert error.count("\n") == 1, error
    assert not (tmp_path / "x.html").exists()


def test_the_file_of_the_traces_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.jsonl"
    row = json.dumps({"problem": "1?", "completion": "1", "reference_answer": "1"})
    file.write_text(row)
    assert "is the file of the traces. Name another one" in refused(capsys, str(file), "--out", str(file))
    assert file.read_text() == row
