"""Full text search: words in any form, phrases, or, -without; and where in the text they stand.

python examples/text_search.py [URL]    URL of a running service, http://127.0.0.1:8000 if left out
"""

from sentences import call, change_collection, items, remove_collection

call("/items", **items)

# Texts are searched by their words alone: no model, no embedding of the query.
searches = ["transactions", '"solar eclipse"', "violin or metronome", "bacteria -yeast", "the of and"]
for text in searches:
    hits = call("/search/text", query_text=text, n_results=3, snippets=True)
    print(f"{text}: {len(hits['ids'])} found")
    for score, id_, snippet in zip(hits["scores"], hits["ids"], hits["snippets"], strict=True):
        print(f"  {score:.2f}  {id_:<14}{snippet}")

# "transactions" has found "transaction": words are compared by their stems, in the language of the collection.
change_collection(language="simple")
hits = call("/search/text", query_text="transactions")
print(f"transactions, in the language simple: {len(hits['ids'])} found")

remove_collection()
