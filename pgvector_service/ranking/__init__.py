"""Numbers only: distances, blocks of rows, the nearest of them, and what is made of rankings."""
