"""What SLURM says of the job that this process belongs to, and the one thing that is asked of it: to be requeued.

The signal is the one that the scripts in `slurm/` ask for (`--signal=USR1@…`). SLURM sends it to every process of a
job step, also to those that only serve another one: each of them has to say what it does with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

REQUEUE = signal.SIGUSR1
"""Asks for a whole checkpoint and a requeue: the end of the job's time, or pre-emption, is near."""


def job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """The name that `scontrol` knows the job by, an array's task as `array_task`; None outside of SLURM.

    The SLURM_JOB_ID of one task of an array is the array's own number: requeued by it, all tasks would begin again.

    >>> job_id({"SLURM_JOB_ID": "71"})
    '71'
    >>> job_id({"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"})
    '70_3'
    """
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def is_requeued(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this job has run before: what lies in its run directory is its own."""
    return int(environ.get("SLURM_RESTART_COUNT", "0")) > 0


def hold_requeue() -> None:
    """In a job, keeps the signal REQUEUE waiting until `let_requeue_through`: before somebody listens it would kill."""
    if job_id() is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {REQUEUE})


@contextmanager
def kept_from_children(*signums: signal.Signals) -> Iterator[None]:
    """Processes that are started in the `with` block never get these signals, which SLURM sends to them too.

    What the calling process gets meanwhile it hears at the end of the block.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signums)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_requeue_through() -> None:
    """Lets the signal REQUEUE in. One that came meanwhile is heard here."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {REQUEUE})


def requeue(job: str) -> None:
    """Puts the job back into the queue. From then on SLURM ends its processes.

    Raises:
        ValueError: SLURM refuses, or there is no `scontrol` here.
    """
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        refusal = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        raise ValueError(
            f"SLURM does not requeue job {job} ({' '.join(command)}: {refusal}). What the run has saved is whole: "
            "submit it again with --ckpt_path last."
        )


def check_tasks(num_nodes: int, devices: int, environ: Mapping[str, str] = os.environ) -> None:
    """Raises a ValueError unless SLURM started one task for each device of the trainer, on as many nodes.

    Args:
        num_nodes, devices: of the trainer; `devices` is a number for each node.
    """
    num_tasks, job_nodes = int(environ["SLURM_NTASKS"]), int(environ.get("SLURM_NNODES", "1"))
    if num_tasks > 1 and "SLURM_STEP_ID" not in environ:
        raise ValueError(
            f"Job {job_id(environ)} has {num_tasks} tasks, but this process was not started by srun: it would wait for "
            f"{num_tasks - 1} others that nobody starts. Put srun before python."
        )
    if (num_tasks, job_nodes) != (num_nodes * devices, num_nodes):
        fitting = "" if num_tasks % job_nodes else f"--trainer.num_nodes={job_nodes} "
        fitting += f"--trainer.devices={num_tasks // job_nodes}" if fitting else ""
        ways = f"set {fitting}, or submit" if fitting else "submit"
        raise ValueError(
            f"SLURM started {num_tasks} tasks on {job_nodes} nodes, but trainer.num_nodes={num_nodes} and "
            f"trainer.devices={devices} make {num_nodes * devices}. Every device wants a task: {ways} with "
            f"--nodes={num_nodes} --ntasks-per-node={devices}."
        )
    if num_tasks > 1 and "SLURM_NTASKS_PER_NODE" not in environ:
        raise ValueError(
            f"The job was submitted with --ntasks={num_tasks}, which does not say how they are dealt out to nodes. "
            f"Submit it with --nodes={num_nodes} --ntasks-per-node={devices}."
        )
