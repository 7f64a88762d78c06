"""Settings that every room shares: where data lives, which warehouse, what time it is.

All settings are environment variables that begin with `MAILHOUSE_`, or lines of a `.env` file in the working
directory. Rooms that need more subclass `MailhouseSettings`; a `MAILHOUSE_` variable that no room knows is an error
(`check_environment`), because a misspelt setting would otherwise be silently without effect.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from warehouse.cluster import Cluster
from warehouse.errors import SettingsError

PREFIX = "MAILHOUSE_"
DEFAULT_PORT = 18123
PROJECT_ROOT = Path(__file__).resolve().parent.parent


class MailhouseSettings(BaseSettings):
    """Settings common to all rooms.

    Attributes:
        home: folder for everything Mailhouse writes; made on first use.
        content_dir: folder of what marketers write (campaigns, templates, sources).
        warehouse_url: `http(s)://user:password@host:port` of a ClickHouse server. Unset means the embedded engine
            on `127.0.0.1:warehouse_port`, its data under `home/warehouse`.
        warehouse_port: port of the embedded engine.
        warehouse_password: password of the embedded engine's user `default`, for the server and its clients alike;
            unset or empty means none. With a warehouse_url, the password stands in that URL instead.
        warehouse_readers: read-only users of the embedded engine, name to password: `{"grafana": "secret"}`.
            They read the database `bi`, where personal data is masked.
        warehouse_personal_readers: those of them, with commas, who may see personal data; they read everything.
        warehouse_cluster: name of the ClickHouse cluster whose replicas all keep every table; empty: one server.
        warehouse_database_engine: engine of the databases on it, e.g. `Replicated('/clickhouse/databases/{database}',
            '{shard}', '{replica}')`; empty: the server's default.
        warehouse_replica_path: path of a table in ClickHouse Keeper; empty: the server's `default_replica_path`.
        warehouse_replica_name: a replica's name under that path.
        redis_url: `redis://user:password@host:port/database`: rate limits are shared by all who name the server; unset,
            each sending process keeps its own, and CRMs' limits are shared by the processes of one home.
        clock_offset: seconds added to the wall clock, for rehearsals on past data (the demo lives in June 2011).
            Every room and every dbt model takes the time through it.
        erasure_key: key of the hashes by which people who were erased are recognised (`warehouse.erasures`); unset
            means a file in the home folder, made once. All processes of a warehouse must have the same.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore")

    home: Path = PROJECT_ROOT / ".mailhouse"
    content_dir: Path = PROJECT_ROOT / "content"
    warehouse_url: SecretStr | None = None
    warehouse_port: int = DEFAULT_PORT
    warehouse_password: SecretStr | None = None
    warehouse_readers: dict[str, SecretStr] = {}
    warehouse_personal_readers: str = ""
    warehouse_cluster: str = ""
    warehouse_database_engine: str = ""
    warehouse_replica_path: str = ""
    warehouse_replica_name: str = "{replica}"
    redis_url: SecretStr | None = None
    clock_offset: float = 0.0
    erasure_key: SecretStr | None = None

    @classmethod
    def load(cls):
        """Read the environment.

        Raises:
            SettingsError: a value does not parse; the message names the variable, never a secret's value.
        """
        try:
            return cls()
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            name = PREFIX + str(first["loc"][0]).upper()
            raise SettingsError(
                f"Setting {name}: {first['msg']}.", fix=f"Correct {name} in the environment or in .env."
            ) from None

    @property
    def personal_readers(self) -> frozenset[str]:
        """Read-only users who may see personal data.

        Raises:
            SettingsError: one of them is no reader.
        """
        names = frozenset(self.warehouse_personal_readers.replace(",", " ").split())
        if strange := sorted(names - self.warehouse_readers.keys()):
            raise SettingsError(
                f"MAILHOUSE_WAREHOUSE_PERSONAL_READERS names {strange[0]}, who is no reader.",
                fix=f"Readers are: {', '.join(sorted(self.warehouse_readers)) or 'none'}; MAILHOUSE_WAREHOUSE_READERS"
                " has their passwords.",
            )
        return names

    @property
    def is_embedded(self) -> bool:
        """Whether the warehouse is the embedded engine."""
        return self.warehouse_url is None

    @property
    def warehouse(self) -> WarehouseAddress:
        """Where ClickHouse answers."""
        if self.warehouse_url is None:
            password = self.warehouse_password.get_secret_value() if self.warehouse_password else ""
            return WarehouseAddress("http", "127.0.0.1", self.warehouse_port, "default", password)
        return WarehouseAddress.parse(self.warehouse_url.get_secret_value())

    @property
    def cluster(self) -> Cluster:
        """Whether and how tables are replicated."""
        return Cluster(
            self.warehouse_cluster,
            self.warehouse_database_engine,
            self.warehouse_replica_path,
            self.warehouse_replica_name,
        )

    def erasure_secret(self) -> bytes:
        """The key of the hashes of people who were erased; made once, if no setting gives it.

        Raises:
            SettingsError: the key is too short to be a secret, or its file cannot be made or read.
        """
        return secret_of(
            self.erasure_key,
            self.home / "erasure_key",
            setting="MAILHOUSE_ERASURE_KEY",
            purpose="of people who were erased",
            lost="without it they would come back. If nobody was ever erased, delete it.",
        )

    def now(self) -> datetime:
        """The time, UTC, milliseconds, through `clock_offset`."""
        moment = datetime.now(UTC) + timedelta(seconds=self.clock_offset)
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


_SECRET_BYTES = 32
_SHORTEST_SECRET = 16


def secret_of(given: SecretStr | None, path: Path, *, setting: str, purpose: str, lost: str) -> bytes:
    """A key from a setting, else from a file that is made once, whole, readable by its owner only.

    Args:
        setting: the variable's name, for errors.
        purpose: what the key is of, for errors.
        lost: what follows if the file is gone, for errors.

    Raises:
        SettingsError: the key is too short to be a secret, or its file cannot be made or read.
    """
    if given is not None:
        key = given.get_secret_value().encode()
        if len(key) < _SHORTEST_SECRET:
            raise SettingsError(
                f"{setting} is shorter than {_SHORTEST_SECRET} bytes.",
                fix="Make one with: python -c 'import secrets; print(secrets.token_hex(32))'",
            )
        return key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_once(path, secrets.token_hex(_SECRET_BYTES).encode())
        key = path.read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"The key {purpose} at {path} cannot be made or read: {error.strerror}.",
            fix=f"Make its folder writable, or set {setting}.",
        ) from error
    if len(key) < _SHORTEST_SECRET:
        raise SettingsError(
            f"{path} holds no key: it is shorter than {_SHORTEST_SECRET} bytes.",
            fix=f"Put the key back from a backup; {lost}",
        )
    return key


def _write_once(path: Path, content: bytes) -> None:
    """Create a file with mode 0600 whole or not at all; the first of several processes wins."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class WarehouseAddress:
    """A ClickHouse HTTP endpoint: scheme, host, port, user, password. `repr` hides the password."""

    __slots__ = ("host", "password", "port", "scheme", "user")

    def __init__(self, scheme: str, host: str, port: int, user: str, password: str) -> None:
        self.scheme, self.host, self.port, self.user, self.password = scheme, host, port, user, password

    @classmethod
    def parse(cls, url: str) -> WarehouseAddress:
        """Parse `http(s)://user:password@host:port`.

        Raises:
            SettingsError: the URL has another scheme or no host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError(
                "MAILHOUSE_WAREHOUSE_URL is not an http or https URL of a ClickHouse server.",
                fix="Write it as http://user:password@host:8123, percent-encoding special characters.",
            )
        return cls(
            parts.scheme,
            parts.hostname,
            port or (8443 if parts.scheme == "https" else 8123),
            unquote(parts.username or "default"),
            unquote(parts.password or ""),
        )

    @property
    def url(self) -> str:
        """`scheme://host:port`, without credentials."""
        return f"{self.scheme}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"WarehouseAddress({self.url}, user={self.user!r})"


def known_settings(classes: Iterable[type[MailhouseSettings]]) -> set[str]:
    """Names of the environment variables that the given settings classes read."""
    return {PREFIX + name.upper() for settings in classes for name in settings.model_fields}


def check_environment(
    classes: Iterable[type[MailhouseSettings]], environment: Mapping[str, str] | None = None
) -> None:
    """Refuse `MAILHOUSE_` variables that no settings class knows.

    Raises:
        SettingsError: names the variable and the nearest known one.
    """
    known = known_settings(classes)
    for name in sorted(os.environ if environment is None else environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known settings: {', '.join(sorted(known))}."
            raise SettingsError(f"{name} is no setting of Mailhouse.", fix=f"{hint} Unset it otherwise.")
