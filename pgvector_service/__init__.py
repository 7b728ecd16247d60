"""The parts of the service. Each is imported by its own name; none imports a door (pgvector_api, _db, _cli)."""

__version__ = "0.1.0"
