"""One writer name, one process: who holds a store is said, and a dead writer holds nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from w2sr.traces import TraceWriter, read_store
from w2sr.types import Trace


def make_trace(number: int) -> Trace:
    return replace(Trace("", "toy", "1 + 1?", "2", "weak-7", "1 + 1 = 2"), problem_id=f"toy/{number}")


def test_a_second_writer_is_told_who_holds_the_store(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer:
        writer.append(make_trace(1))
        with pytest.raises(ValueError, match=f"is being written by pid {os.getpid()} on .*lock-main"):
            TraceWriter(tmp_path)
        with TraceWriter(tmp_path, writer="rank1") as other:
            other.append(make_trace(2))
    assert read_store(tmp_path) == [make_trace(2), make_trace(1)]  # rank1 sealed first
    with pytest.raises(ValueError, match="writer='a/b'"):
        TraceWriter(tmp_path, writer="a/b")


def test_two_writers_of_the_same_trace_are_found_out(tmp_path: Path) -> None:
    with TraceWriter(tmp_path) as writer, TraceWriter(tmp_path, writer="rank1") as other:
        writer.append(make_trace(1))
        other.append(make_trace(1))
    with pytest.raises(ValueError, match=r"holds 1 traces twice, the first \('toy/1', 'weak-7', 0\)"):
        read_store(tmp_path)


FORKER = """
import os, signal, sys, time
from w2sr.traces import TraceWriter
writer = TraceWriter(sys.argv[1])
child = os.fork()
if child == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_forked_child_does_not_hold_the_lock_of_a_killed_writer(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", FORKER, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(ValueError, match=f"pid {process.pid} "):
            TraceWriter(tmp_path)
        process.kill()
        process.wait()
        try:
            with TraceWriter(tmp_path) as writer:
                writer.append(make_trace(1))
        finally:
            os.kill(child, signal.SIGKILL)
