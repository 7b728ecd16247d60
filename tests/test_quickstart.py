"""The example that a newcomer runs first: its data is sound, and it finds what a reader would pick."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ROW = re.compile(r"\s+(?P<similarity>-?[01]\.\d\d)\s+(?P<topic>\w+)\s+(?P<document>\S.*)")


@pytest.fixture(scope="module")
def texts() -> Any:
    return json.loads((EXAMPLES / "sentences.json").read_bytes())


def test_the_vectors_belong_to_the_texts(texts: Any) -> None:
    sentences = texts["sentences"]
    assert len({sentence["id"] for sentence in sentences}) == len(sentences)
    assert {query["expected"] for query in texts["queries"]} <= {sentence["id"] for sentence in sentences}
    with np.load(EXAMPLES / "minilm_sentences.npz") as vectors:
        assert set(vectors) == {"sentences", "queries"}
        for name, array in vectors.items():
            assert array.shape == (len(texts[name]), 384)
            assert array.dtype == np.float32
            np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-3)


def test_quickstart_finds_what_a_reader_would_pick(texts: Any) -> None:
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--fresh"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    found = _table(done.stdout, {query["text"] for query in texts["queries"]})
    by_id = {sentence["id"]: sentence for sentence in texts["sentences"]}
    assert len(texts["queries"]) == 10
    for query in texts["queries"]:
        rows = found[query["text"]]
        expected = by_id[query["expected"]]
        assert (rows[0]["topic"], rows[0]["document"]) == (expected["topic"], expected["text"])
        similarities = [float(row["similarity"]) for row in rows]
        assert len(similarities) == 3
        assert similarities == sorted(similarities, reverse=True)
    assert "10 of 10" in done.stdout


def _table(output: str, queries: set[str]) -> dict[str, list[dict[str, str]]]:
    """The rows printed under each query."""
    rows: dict[str, list[dict[str, str]]] = {}
    query = ""
    for line in output.splitlines():
        if line.strip() in queries:
            query = line.strip()
            rows[query] = []
        elif query and (row := ROW.fullmatch(line)):
            rows[query].append(row.groupdict())
    return rows
