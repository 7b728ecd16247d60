"""HTTP: how requests become calls, and answers and errors become responses."""
