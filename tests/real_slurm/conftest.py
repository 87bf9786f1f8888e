"""A SLURM of our own on this machine: munged, slurmctld and slurmd with private folders, ended by their process ids."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
START_S = 60
NODES = ("first", "localhost")
"""Two nodes, each with a slurmd and two CPUs, on one machine. The last one's name is an address that anybody finds."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=10
MinJobAge=600
SchedulerParameters=bf_interval=1,sched_interval=1
JobRequeue=1
NodeName=first NodeHostname={host} NodeAddr=127.0.0.1 Port={first_port} CPUs=2 State=UNKNOWN
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={last_port} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=first,localhost Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


class Slurm(NamedTuple):
    """A cluster of one node with two CPUs."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: object, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
        """One of SLURM's programs, or one of ours that calls them."""
        return subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by its names."""
        done = self.run("scontrol", "--oneliner", "show", "job", job)
        assert done.returncode == 0, done.stderr
        return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)

    def wait(self, job: str, limit_s: float, until: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Waits until a job's state is as told. A requeued job's pause of two minutes is cut to two seconds: what
        starts in the second in which the job was killed, a node takes for the killed one ("already killed").
        """
        deadline, hastened = time.monotonic() + limit_s, False
        while not until(state := self.state(job)):
            possible = state["Reason"] not in ("PartitionConfig", "BadConstraints")
            assert possible and time.monotonic() < deadline, f"{state}\n{self.logs()}"
            if state["JobState"] == "PENDING" and state["Restarts"] != "0" and not hastened:
                self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")
                hastened = True
            time.sleep(0.3)
        return state

    def logs(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in sorted(self.folder.glob("*.log")))


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Starts the three daemons in the foreground, and ends just these."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and Debian's slurm-wlm and munge; missing: {', '.join(missing) or 'root'}")
    folder = Path(tempfile.mkdtemp(prefix="w2sr-slurm-"))  # a short path: sockets have at most 107 characters
    folder.chmod(0o755)
    daemons: list[subprocess.Popen[bytes]] = []
    bin_of_this_python = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    environment |= {
        "PATH": f"{bin_of_this_python}{os.pathsep}{path}",
        "PYTHONPATH": str(REPOSITORY),
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MASTER_ADDR": "127.0.0.1",  # the machine's name may not resolve
        "OMP_NUM_THREADS": "1",
    }
    cluster = Slurm(folder, environment)
    try:
        _configure(folder)
        key = ["--key-file", str(folder / "munge.key"), "--socket", str(folder / "munge.socket")]
        rest = ["--pid-file", f"{folder}/munged.pid", "--log-file", f"{folder}/munged.log"]
        seed = ["--seed-file", str(folder / "munged.seed")]
        commands = [["munged", "--foreground", "--force", *key, *rest, *seed], ["slurmctld", "-D"]]
        commands += [["slurmd", "-D", "-N", node] for node in NODES]
        for command in commands:
            with (folder / f"{command[0]}.out").open("ab") as out:
                daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
            _wait_for_socket(folder / "munge.socket")
        deadline = time.monotonic() + START_S
        while cluster.run("sinfo", "--noheader", "--Node", "--format=%t").stdout.split() != ["idle"] * len(NODES):
            assert all(daemon.poll() is None for daemon in daemons) and time.monotonic() < deadline, cluster.logs()
            time.sleep(0.3)
        yield cluster
    finally:
        if daemons:
            cluster.run("scancel", "--user=root", "--signal=KILL", "--full")
            cluster.run("scancel", "--user=root")
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    settings = {
        "host": socket.gethostname().split(".")[0],
        "folder": folder,
        "controller_port": _free_port(),
        "first_port": _free_port(),
        "last_port": _free_port(),
    }
    (folder / "slurm.conf").write_text(CONF.format(**settings))


def _wait_for_socket(path: Path) -> None:
    deadline = time.monotonic() + START_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.1)
