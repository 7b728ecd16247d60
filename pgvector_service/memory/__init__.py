"""Which collections are in memory, and equal to the database."""
