"""Grading processes that can be killed: each answer has its own time limit, and a process that hangs or dies takes
only its answer with it.

The limit is kept by the calling thread (poll with a deadline, then SIGKILL), so it holds in any thread, in a daemonic
process and in a forked child; signals of the calling process are not used. Processes are started by `subprocess`, on
first need, and speak JSON lines. A forked child starts processes of its own.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from w2sr.slurm import REQUEUE, kept_from_children

START_LIMIT_S = 120.0
"""A process that is not ready after this long is an error. Importing sympy takes a second, more on a busy machine."""

ORPHAN_GRACE_S = 10
"""So much later than the time limit, a process whose parent was killed ends itself."""

TASKS_PER_PROCESS = 40
"""So many waiting tasks are worth the processor time of one more start, the import of sympy."""

PATIENCE_S = 1.0
"""A process that works on one task for longer does not count as one that will take the waiting tasks."""

_PROGRAM = Path(__file__).with_name("worker_main.py")


class GradeTask(NamedTuple):
    """The pairs of one answer for math-verify, as LaTeX. They share its time limit."""

    pairs: tuple[tuple[str, str], ...]


class Outcome(NamedTuple):
    """What became of a task: for each pair whether it is equal; None where the process hung or died before the end."""

    equal: tuple[bool, ...] | None
    reason: str


class _Worker:
    """One grading process with its pipe. `task` is the index of the task it works on, `deadline` a monotonic time."""

    def __init__(self, memory_gib: float, timeout_s: float) -> None:
        program = [sys.executable, "-P", str(_PROGRAM)]
        with kept_from_children(signal.SIGTERM, REQUEUE):
            self.process = subprocess.Popen(
                [*program, str(int(memory_gib * 2**30)), str(int(timeout_s) + ORPHAN_GRACE_S)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy orders by hash: the same verdict in every run
                start_new_session=True,  # Ctrl-C reaches the parent only
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout
        self.unread = b""
        self.ready = False
        self.task: int | None = None
        self.impatient_at = math.inf
        self.deadline = time.monotonic() + START_LIMIT_S

    def send(self, index: int, task: GradeTask, timeout_s: float) -> bool:
        """Hands over a task; False where the process is found dead, which is no fault of the task."""
        request = {"id": index, "pairs": task.pairs}
        unsent = memoryview(json.dumps(request).encode() + b"\n")
        try:
            while unsent:
                unsent = unsent[self.requests.write(unsent) :]
        except BrokenPipeError:
            return False
        self.task, self.deadline = index, time.monotonic() + timeout_s
        self.impatient_at = time.monotonic() + PATIENCE_S
        return True

    def receive(self) -> dict[str, Any] | None:
        """The reply that a readable pipe completes; {} where it is still incomplete, None where the process died."""
        chunk = os.read(self.replies.fileno(), 65536)
        if not chunk:
            return None
        line, newline, rest = (self.unread + chunk).partition(b"\n")
        self.unread = rest if newline else line
        return dict(json.loads(line)) if newline else {}

    def kill(self) -> int:
        """Ends the process at once; its exit code, negative for a signal."""
        self.process.kill()
        code = self.process.wait()
        self.replies.close()
        self.requests.close()
        return code


class WorkerPool:
    """Grades tasks in `num_workers` processes of at most `memory_gib` GiB each, `timeout_s` seconds a task.

    Processes start when tasks wait: one for each `TASKS_PER_PROCESS` of them, and one for each process that is held up
    by a task. They stay for later calls. Calls from several threads take turns.
    """

    def __init__(self, num_workers: int, timeout_s: float, memory_gib: float = 2.0) -> None:
        if num_workers < 1 or timeout_s <= 0:
            raise ValueError(f"num_workers={num_workers} must be at least 1 and timeout_s={timeout_s} above 0.")
        self.num_workers, self.timeout_s, self.memory_gib = num_workers, timeout_s, memory_gib
        self._begin_in_this_process()

    def _begin_in_this_process(self) -> None:
        # After a fork the processes and perhaps the locked lock belong to the parent: a child begins afresh.
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._end = weakref.finalize(self, _kill_all, self._workers)

    def run(self, tasks: Sequence[GradeTask]) -> list[Outcome]:
        """One outcome a task, in their order.

        Raises:
            RuntimeError: a grading process cannot start, for example because math-verify is not installed.
        """
        if os.getpid() != self._pid:
            self._end.detach()
            self._begin_in_this_process()
        with self._lock:
            outcomes: dict[int, Outcome] = {}
            waiting = deque(range(len(tasks)))
            try:
                while len(outcomes) < len(tasks):
                    self._hand_out(tasks, waiting)
                    self._collect(outcomes, tasks_wait=bool(waiting))
            finally:  # after Ctrl-C nobody waits for these replies
                for worker in [worker for worker in self._workers if worker.task is not None]:
                    self._remove(worker)
            return [outcomes[index] for index in range(len(tasks))]

    def _hand_out(self, tasks: Sequence[GradeTask], waiting: deque[int]) -> None:
        for worker in [worker for worker in self._workers if worker.ready and worker.task is None]:
            if not waiting:
                return
            if worker.send(waiting[0], tasks[waiting[0]], self.timeout_s):
                waiting.popleft()
            else:
                self._remove(worker)
        now = time.monotonic()
        held_up = sum(worker.task is not None and worker.impatient_at <= now for worker in self._workers)
        useful = math.ceil(len(waiting) / TASKS_PER_PROCESS) + held_up
        for _ in range(min(self.num_workers, useful) - len(self._workers) if waiting else 0):
            self._workers.append(_Worker(self.memory_gib, self.timeout_s))

    def _collect(self, outcomes: dict[int, Outcome], tasks_wait: bool) -> None:
        """Waits for a reply, the next deadline or the end of patience, and takes in what there is."""
        active = [worker for worker in self._workers if worker.task is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in active:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            now = time.monotonic()
            moments = [worker.deadline for worker in active]
            if tasks_wait and len(self._workers) < self.num_workers:
                moments += [worker.impatient_at for worker in active if worker.impatient_at > now]
            wait_s = max(0.0, min(moments) - now)
            readable = [key.data for key, _ in selector.select(wait_s)]
        for worker in readable:
            self._take(worker, worker.receive(), outcomes)
        now = time.monotonic()
        for worker in [worker for worker in active if worker not in readable and worker.deadline <= now]:
            self._give_up(worker, f"grading took longer than {self.timeout_s:g} s and was stopped", outcomes)

    def _take(self, worker: _Worker, reply: dict[str, Any] | None, outcomes: dict[int, Outcome]) -> None:
        if reply is None:
            self._give_up(worker, "the grading process died", outcomes)
        elif "ready" in reply:
            worker.ready = True
        elif reply:
            assert reply["id"] == worker.task, "a reply belongs to the task that its process was given"
            outcomes[reply["id"]] = Outcome(tuple(reply["equal"]), str(reply["reason"]))
            worker.task, worker.impatient_at = None, math.inf
            if reply["retire"]:
                self._remove(worker)

    def _give_up(self, worker: _Worker, reason: str, outcomes: dict[int, Outcome]) -> None:
        task, was_ready = worker.task, worker.ready
        code = self._remove(worker)
        if not was_ready:
            raise RuntimeError(
                f"A grading process did not start (exit code {code}). It needs the package math-verify; to see why, "
                f"run: {sys.executable} -P {_PROGRAM} 2147483648 10"
            )
        if task is not None:
            outcomes[task] = Outcome(None, reason)

    def _remove(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.kill()

    def close(self) -> None:
        """Ends all processes. The pool can be used again: it then starts new ones."""
        if os.getpid() == self._pid:
            with self._lock:
                _kill_all(self._workers)


def _kill_all(workers: list[_Worker]) -> None:
    # In a forked child this kills nothing: Popen signals only processes that waitpid knows as its own children.
    while workers:
        workers.pop().kill()
