"""Where the time of a search goes: processor time for each query by thread, and samples of py-spy by function.

    make profile
    .venv/bin/python -m benchmarks.profile [--data FILE.npz] [--rows 100000] [--clients 1]

Processor time is what the kernel has booked. py-spy then looks 100 times a second at what the threads of the service
do, native code included in the line that has called it, and slows it down a little.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import psutil

from benchmarks import load
from benchmarks.compare import QUERIES, search_bodies, wait_until_compressed
from benchmarks.data import vectors
from benchmarks.servers import database, service
from benchmarks.sizes import fill

SAMPLES_PER_S = 100
TOP = 30


def processor_seconds(process: psutil.Process) -> dict[str, float]:
    """What each kind of thread of the service, and PostgreSQL, have used so far."""
    used: defaultdict[str, float] = defaultdict(float)
    for thread in process.threads():
        try:
            name = Path(f"/proc/{process.pid}/task/{thread.id}/comm").read_text().strip()
        except OSError:
            name = "?"
        own = "event loop" if thread.id == process.pid else f"other threads ({name})"
        used[own] += thread.user_time + thread.system_time
    for other in psutil.process_iter(["name"]):
        if (other.info["name"] or "").startswith("postgres"):
            times = other.cpu_times()
            used["PostgreSQL"] += times.user + times.system
    return used


def by_function(folded: Path) -> list[tuple[float, float, str]]:
    """From py-spy's raw output: the shares of samples in and below each function, for the busiest."""
    inside: Counter[str] = Counter()
    below: Counter[str] = Counter()
    total = 0
    for line in folded.read_text().splitlines():
        stack, count = line.rsplit(" ", 1)
        frames = [frame.rpartition(":")[0] or frame for frame in stack.split(";")]
        total += int(count)
        inside[frames[-1]] += int(count)
        for frame in set(frames):
            below[frame] += int(count)
    return [(inside[name] / total, below[name] / total, name) for name, _ in inside.most_common(TOP)]


def main() -> None:
    """Load a service and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="an .npz file with int8 vectors, their scale, and queries")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    rows, queries = vectors(options.rows, QUERIES, options.data)
    with tempfile.TemporaryDirectory() as name, database() as url:
        folder = Path(name)
        fill(url, rows)
        with service(url) as (client, process):
            print(wait_until_compressed(client, queries))
            bodies = search_bodies(queries, folder / "bodies.ndjson")
            target = ("benchmarks.load", f"{client.url}/search/vector", bodies, options.clients)
            load.run(*target, 1.0)

            before = processor_seconds(process)
            measured = load.run(*target, options.seconds)
            after = processor_seconds(process)
            print(f"{options.clients} clients: {measured}")
            for thread, seconds in sorted(after.items()):
                used = (seconds - before.get(thread, 0.0)) / measured["requests"] * 1e6
                if used >= 1:
                    print(f"  {used:8.0f} us a query  {thread}")

            folded = folder / "folded.txt"
            begun = load.start(*target, options.seconds + 2)
            time.sleep(1)
            py_spy = str(Path(sys.executable).with_name("py-spy"))
            command = [py_spy, "record", "--pid", str(process.pid), "--duration", str(int(options.seconds))]
            command += ["--rate", str(SAMPLES_PER_S), "--format", "raw", "--output", str(folded)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            load.finish(begun)
            print("    in it  below  function")
            for inside, below, function in by_function(folded):
                print(f"  {inside:7.1%}{below:7.1%}  {function}")


if __name__ == "__main__":
    main()
