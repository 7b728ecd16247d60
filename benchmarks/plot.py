"""Draws latency against size from the JSON of benchmarks.sizes, beside it, as PNG. Run by the Python of the peers."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main() -> None:
    """Draw one picture."""
    file = Path(sys.argv[1])
    figures = json.loads(file.read_text())
    sizes = [one["rows"] for one in figures]
    lines = {
        "default search, 1 client": ("median_ms 1", "o-"),
        "default search, 32 clients": ("median_ms 32", "s-"),
        "exact search, 1 client": ("exact_ms", "^--"),
        "bare numpy, no HTTP": ("numpy_ms", "x:"),
    }
    _, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for label, (key, style) in lines.items():
        axes.plot(sizes, [one[key] for one in figures], style, label=label)
    axes.set(xscale="log", yscale="log", xlabel="vectors of 384 numbers", ylabel="median latency, ms")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    pyplot.savefig(file.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main()
