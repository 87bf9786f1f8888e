"""Locks of a directory: a file that one process holds, with its pid and host in it."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path


def acquire(path: Path, *, blocking: bool, remedy: str = "give this process another writer name") -> int:
    """Locks a file for this process and writes its pid and host into it. Returns the descriptor that holds the lock.

    Raises:
        ValueError: another process holds the lock, and `blocking` is false. The message ends with `remedy`.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise ValueError(
                f"{path.parent} is being written by {holder} ({path.name} is locked). Wait for it or stop it, or "
                f"{remedy}."
            ) from None
        # The holder removes the file as it leaves: a lock on a removed file holds nobody off.
        if os.fstat(descriptor).st_nlink:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            return descriptor
        os.close(descriptor)


def release(path: Path, descriptor: int) -> None:
    """Removes the lock file while it is still held, then gives the lock back."""
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
