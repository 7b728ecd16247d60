"""Stops the embedded PostgreSQL when the last service that uses it is gone, also by kill -9: a small process (Linux).

python caretaker.py LOCK FOLDER    a program of its own, which imports nothing of the service

Each service has one, for as long as it runs. It waits for the lock that the services share (embedded.py), which the
operating system hands out when all of them have let go, dead or alive. It listens to nothing else and has no child, so
that it may be killed at any time; then a kill -9 of the service leaves the server to the next start.
"""

import os
import signal
import sys
import time
from pathlib import Path

# As long as the next service waits for the lock.
PATIENCE_S = 50.0


def main(lock: str, folder: str) -> None:
    """Wait for the lock, then shut down the server in `folder`, if there is one, and wait for its end."""
    import fcntl

    with open(lock, "a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        try:
            server = int(Path(folder, "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return
        deadline = time.monotonic() + PATIENCE_S
        if _serves(server, folder):
            os.kill(server, signal.SIGINT)  # "fast": clients are cut off, and all is written
        while _serves(server, folder) and time.monotonic() < deadline:
            time.sleep(0.05)


def _serves(pid: int, folder: str) -> bool:
    """Whether the process is a PostgreSQL server of this folder, and not another one with a number used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.path.basename(command[0]) == b"postgres" and os.fsencode(folder) in command


if __name__ == "__main__":
    main(*sys.argv[1:])
