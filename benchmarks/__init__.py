"""Scripts behind the figures of the README; each prints what it measures."""
