"""Searches: ranked in memory or in a snapshot, and answered from one state of the database."""
