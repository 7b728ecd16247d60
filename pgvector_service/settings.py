"""The settings of the service: environment variables first, then the file `.env`, then these defaults."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import platformdirs
import psutil
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from pgvector_service import dsn


def _half_of_memory() -> int:
    return psutil.virtual_memory().total // 2


def _user_data_dir() -> Path:
    return platformdirs.user_data_path("pgvector-service")


class SettingsError(Exception):
    """A setting has a value that cannot be used; the message is one line that names the variable."""


def environment_for_command(variables: Mapping[str, str], programs: Path | None) -> dict[str, str]:
    """The environment of this process for a command that it starts, with `variables`, and `programs` first in PATH."""
    path = os.environ.get("PATH", os.defpath)
    return {**os.environ, **variables, "PATH": f"{programs}{os.pathsep}{path}" if programs else path}


class Settings(BaseSettings):
    """One attribute for each variable; `.env.example` lists them all with their defaults."""

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )

    database_url: str | None = Field(None, repr=False)
    api_host: str = "127.0.0.1"
    api_port: int = Field(8000, ge=0, le=65535)
    web_concurrency: int = Field(1, ge=1, le=64)
    data_dir: Path = Field(default_factory=_user_data_dir)
    db_pool_size: int = Field(20, ge=1, le=1000)
    db_pool_timeout_s: float = Field(2.0, ge=0, le=600)
    statement_timeout_s: float = Field(30.0, gt=0, le=86400)
    cache_max_bytes: int = Field(default_factory=_half_of_memory, ge=0)
    recall_target: float = Field(0.999, ge=0.5, le=1)
    search_threads: int = Field(0, ge=0, le=1024)
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    max_results: int = Field(10_000, ge=1)
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @field_validator("database_url")
    @classmethod
    def _can_be_connected_to(cls, url: str | None) -> str | None:
        if url is not None and (fault := dsn.fault(url)):
            raise ValueError(fault)
        return url

    @property
    def threads_of_a_search(self) -> int:
        """SEARCH_THREADS, or else the cores that there are for each worker."""
        return self.search_threads or max(1, (os.cpu_count() or 1) // self.web_concurrency)

    @classmethod
    def load(cls, **overrides: object) -> "Settings":
        """Read the environment and `.env`; `overrides` (command-line options) win where they are not None.

        Raises SettingsError, naming the variable, when a value cannot be used.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            variable = str(first["loc"][0]).upper()
            problem = first["msg"].removeprefix("Value error, ")
            raise SettingsError(f"{variable}: {problem}. Correct it in the environment or in .env.") from None

    def export(self) -> None:
        """Put every setting into the environment, where the worker processes that are started next read it."""
        for name, value in self.model_dump().items():
            if value is not None:
                os.environ[name.upper()] = str(value)
