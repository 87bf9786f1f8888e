"""Grading processes that hang, die and retire, with a small stand-in for the grading program."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from w2sr.rewards import Correct
from w2sr.types import Completion, Problem, Rollout
from w2sr.verify import Verifier, workers
from w2sr.verify.comparison import Pair
from w2sr.verify.workers import GradeTask, Outcome, WorkerPool

LIMIT_S = 1.5
STAND_IN = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    [(answer, reference)] = request["pairs"]
    if answer == "hang":
        time.sleep(600)
    if answer == "slow":
        time.sleep(6)
    if answer == "stop reading":
        os.kill(os.getpid(), signal.SIGSTOP)
    if answer == "die":
        os._exit(3)
    if answer == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    equal = [answer == reference]
    reply = {"id": request["id"], "equal": equal, "reason": str(os.getpid()), "retire": answer == "retire"}
    print(json.dumps(reply), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(workers, "_PROGRAM", program)
    return program


@pytest.fixture
def pool(stand_in: Path) -> Iterator[WorkerPool]:
    pool = WorkerPool(num_workers=2, timeout_s=LIMIT_S)
    yield pool
    pool.close()


def task(answer: str) -> GradeTask:
    return GradeTask(((answer, "7"),))


def run(pool: WorkerPool, answers: list[str]) -> list[bool | None]:
    """The decisions on these answers, all against the reference "7"."""
    return [outcome.equal and outcome.equal[0] for outcome in pool.run([task(answer) for answer in answers])]


def pids(pool: WorkerPool) -> set[int]:
    return {worker.process.pid for worker in pool._workers}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_outcomes_come_in_the_order_of_the_tasks(pool: WorkerPool) -> None:
    answers = ["7" if index % 3 == 0 else str(index) + "x" for index in range(60)]
    assert run(pool, answers) == [index % 3 == 0 for index in range(60)]
    assert len(pids(pool)) == 2


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        ("hang", "grading took longer than 1.5 s and was stopped"),
        ("slow", "grading took longer than 1.5 s and was stopped"),  # its reply would come after 6 s
        ("stop reading", "grading took longer than 1.5 s and was stopped"),
        ("die", "the grading process died"),
        ("crash", "the grading process died"),
    ],
)
def test_only_the_hostile_answer_is_lost(pool: WorkerPool, hostile: str, reason: str) -> None:
    answers = ["7", hostile, "8", "7", hostile, "7", "8"]
    outcomes = pool.run([task(answer) for answer in answers])
    assert [outcome.equal for outcome in outcomes] == [(True,), None, (False,), (True,), None, (True,), (False,)]
    assert outcomes[1].reason == outcomes[4].reason == reason


def test_hanging_processes_are_replaced_and_reaped(pool: WorkerPool) -> None:
    assert run(pool, ["7", "7"]) == [True, True]
    before = pids(pool)
    assert run(pool, ["hang", "hang"]) == [None, None]
    assert not any(is_alive(pid) for pid in before)  # a zombie would still count as alive
    assert run(pool, ["7", "8", "7"]) == [True, False, True]


def test_the_limit_holds_for_each_answer_and_not_for_the_batch(pool: WorkerPool) -> None:
    """Three hanging answers on two processes end after two limits, not after one and not never."""
    assert run(pool, ["hang", "hang", "hang", "7"]) == [None, None, None, True]


def test_a_retiring_process_is_replaced_without_loss(pool: WorkerPool) -> None:
    outcomes = pool.run([task("retire")] * 5)
    assert [outcome.equal for outcome in outcomes] == [(False,)] * 5
    assert len({outcome.reason for outcome in outcomes}) == 5  # five process ids
    assert pids(pool) == set()


def test_a_process_killed_while_idle_costs_nothing(stand_in: Path) -> None:
    pool = WorkerPool(num_workers=1, timeout_s=LIMIT_S)
    run(pool, ["7"])
    pool._workers[0].process.kill()
    pool._workers[0].process.wait()
    assert run(pool, ["7", "8"]) == [True, False]
    pool.close()


def test_the_limit_holds_outside_the_main_thread(pool: WorkerPool) -> None:
    found: list[list[bool | None]] = []
    threads = [threading.Thread(target=lambda: found.append(run(pool, ["7", "hang", "8"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[True, None, False]] * 2


def _in_child(pool: WorkerPool, send: Callable[[object], None]) -> None:
    send((run(pool, ["7", "hang", "8"]), sorted(pids(pool))))
    pool.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # forking a process with threads is what loaders do
@pytest.mark.parametrize("lock_is_held", [False, True])
def test_a_forked_daemonic_child_has_processes_of_its_own(pool: WorkerPool, lock_is_held: bool) -> None:
    run(pool, ["7", "7"])
    before = pids(pool)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    if lock_is_held:  # as if another thread were grading at the moment of the fork
        pool._lock.acquire()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(pool, sender.send), daemon=True)
    child.start()
    if lock_is_held:
        pool._lock.release()
    assert receiver.poll(60), "the child hangs"
    decisions, child_pids = receiver.recv()
    child.join()
    assert decisions == [True, None, False]
    assert not before & set(child_pids)
    assert run(pool, ["7", "8"]) == [True, False]
    assert pids(pool) == before  # the child left the parent's processes alone


def test_a_forked_child_that_exits_leaves_the_processes_of_its_parent_alone(stand_in: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from w2sr.verify import workers\n"
        f"workers._PROGRAM = Path({str(stand_in)!r}); pool = workers.WorkerPool(1, 9.0)\n"
        "pool.run([workers.GradeTask((('7', '7'),))])\n"
        "child = os.fork()\n"
        "if child == 0: sys.exit(0)\n"
        "os.waitpid(child, 0); print(pool._workers[0].process.poll())"
    )
    root = Path(workers.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "None\n"  # still running


def test_closing_leaves_no_process(pool: WorkerPool) -> None:
    run(pool, ["7"] * 4)
    before = pids(pool)
    assert len(before) >= 1
    pool.close()
    assert not any(is_alive(pid) for pid in before)
    assert run(pool, ["7"]) == [True]  # and it can be used again


def test_an_interrupted_run_leaves_no_stale_reply(stand_in: Path) -> None:
    pool = WorkerPool(num_workers=1, timeout_s=LIMIT_S)
    run(pool, ["7"])
    collect, calls = pool._collect, []

    def interrupted(outcomes: dict[int, Outcome], tasks_wait: bool) -> None:
        calls.append("interrupted")
        raise KeyboardInterrupt

    pool._collect = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(pool, ["7", "7", "7"])
    pool._collect = collect  # type: ignore[method-assign]
    assert calls == ["interrupted"]
    assert run(pool, ["8"]) == [False]  # the reply to the lost "7" is not taken for the reply to "8"
    pool.close()


@pytest.mark.parametrize("program", ["import no_such_package", "print('not JSON', flush=True); input()"])
def test_a_program_that_cannot_start_is_an_error_and_not_a_verdict(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.py"
    path.write_text(program)
    monkeypatch.setattr(workers, "_PROGRAM", path)
    pool = WorkerPool(num_workers=1, timeout_s=LIMIT_S)
    with pytest.raises((RuntimeError, json.JSONDecodeError)):
        run(pool, ["7"])
    pool.close()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="num_workers=0"):
        WorkerPool(num_workers=0, timeout_s=1.0)
    with pytest.raises(ValueError, match="timeout_s=-1"):
        WorkerPool(num_workers=1, timeout_s=-1)


def test_the_real_program_limits_its_memory_and_loads_nothing_heavy() -> None:
    """The grading program imports neither w2sr nor torch nor numpy."""
    program = Path(workers.__file__).with_name("worker_main.py")
    code = (
        f"import runpy, sys; runpy.run_path({str(program)!r}, run_name='loaded')\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'w2sr'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout == "[]\n"


def test_the_real_program_ends_when_its_parent_is_killed() -> None:
    """A parent that is killed cannot clean up: the end of the pipe must end the process."""
    code = (
        "import os, signal; from w2sr.verify.workers import GradeTask, WorkerPool\n"
        "pool = WorkerPool(1, 60.0); pool.run([GradeTask((('x', 'y'),))])\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(workers.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == -9, done.stderr
    pid = int(done.stdout)
    for _ in range(300):
        if not is_alive(pid) or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the grading process outlives its parent")


def test_a_process_killed_from_outside_while_it_grades_costs_its_answer_and_no_waiting(stand_in: Path) -> None:
    """As the kernel does where memory runs out. The rollout's verdict is a timeout, long before the limit."""
    with Verifier(timeout_s=600.0, num_workers=1) as verifier:
        verifier._grade = lambda answer, reference: (Pair(answer, reference), "")  # all of it needs a process
        assert verifier.verify(r"\boxed{7}", "7").is_correct
        (worker,) = verifier._pool._workers
        killer = threading.Timer(0.3, worker.process.kill)
        killer.start()
        began = time.monotonic()
        verdicts = verifier.verify_all([(r"\boxed{hang}", "7"), (r"\boxed{8}", "7")])
        assert time.monotonic() - began < 60
    assert [(verdict.label, verdict.answer) for verdict in verdicts] == [("timeout", "hang"), ("incorrect", "8")]
    assert verdicts[0].reason == "the grading process died"
    rewarded = Rollout(Problem("p", "s", "?", "7"), (), Completion("p", 0, (1,), "", "stop"), verdicts[0])
    assert Correct(wrong=-1.0, no_answer=-2.0)(rewarded) == -1.0


def test_a_process_killed_while_it_starts_is_an_error_and_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "slow_start.py"
    program.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(workers, "_PROGRAM", program)
    pool = WorkerPool(num_workers=1, timeout_s=LIMIT_S)

    def kill_it() -> None:
        while not pool._workers:
            time.sleep(0.01)
        pool._workers[0].process.kill()

    killer = threading.Thread(target=kill_it)
    killer.start()
    with pytest.raises(RuntimeError, match=r"did not start \(exit code -9\)"):
        run(pool, ["7"])
    killer.join()
    assert pids(pool) == set()


def test_what_slurm_sends_to_all_processes_does_not_end_one_that_starts(stand_in: Path) -> None:
    """The real one imports sympy for seconds before a line of ours could ignore a signal."""
    first = "import os, signal\nfor name in ('SIGUSR1', 'SIGTERM'): os.kill(os.getpid(), getattr(signal, name))\n"
    stand_in.write_text(first + STAND_IN)
    pool = WorkerPool(num_workers=1, timeout_s=60.0)
    assert run(pool, ["7", "8"]) == [True, False]
    pool.close()
