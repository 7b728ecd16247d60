"""Hybrid search: what the embedding finds and what the words find, in one ranking.

python examples/hybrid_search.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from sentences import call, items, queries, query_embeddings, remove_collection

call("/items", **items)

# What is meant comes from the embedding of one question, names and numbers from the words.
embedding, text = query_embeddings[5], "influenza or viruses"
searches = {
    f"by vector: {queries[5]}": call("/search/vector", query_embedding=embedding, n_results=3),
    f"by text: {text}": call("/search/text", query_text=text, n_results=3),
    "by both, fused by rank": call("/search/hybrid", query_embedding=embedding, query_text=text, n_results=3),
    "by both, fused by score, the vectors counting more": call(
        "/search/hybrid", query_embedding=embedding, query_text=text, n_results=3, alpha=0.6
    ),
}
for name, hits in searches.items():
    print(name)
    for i, document in enumerate(hits["documents"]):
        ranks = ""
        if "vector_ranks" in hits:
            ranks = f"(vector {hits['vector_ranks'][i] or '-'}, text {hits['text_ranks'][i] or '-'})"
        print(f"  {hits['ids'][i]:<14}{document} {ranks}")

remove_collection()
