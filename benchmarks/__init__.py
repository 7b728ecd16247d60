"""Scripts behind the figures of docs/performance.md; each prints what it measures."""
