"""The engine in this process: its configuration, a pool of handles to it, sessions, and how to stop a query.

`USE`, `SET` and temporary tables belong to a handle, and a handle runs one query at a time. So plain requests borrow a
handle from a pool and leave it as they found it, and each session keeps a handle of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from warehouse.embedded.access import OWNER, Effect
from warehouse.embedded.errors import SESSION_IS_LOCKED, SESSION_NOT_FOUND, UNKNOWN_EXCEPTION, ServerError
from warehouse.errors import MailhouseError

log = logging.getLogger("warehouse.embedded")

_SESSION_PATIENCE = 0.5  # seconds that a query waits for the one before it in its session
_LARGEST_POOL = 16  # idle handles kept
_RTLD_DEEPBIND = 0x8

# What SQL may do: everything inside the data directory. Sources (files, URLs, other databases) and SHUTDOWN are not
# in the list, so the engine itself refuses them.
_GRANTS = (
    "GRANT CHECK, SHOW, SELECT, INSERT, ALTER, CREATE, DROP, UNDROP TABLE, TRUNCATE, OPTIMIZE, KILL QUERY, dictGet, "
    "SYSTEM DROP CACHE, SYSTEM RELOAD DICTIONARY, SYSTEM FLUSH, SYSTEM MERGES, SYSTEM TTL MERGES, SYSTEM VIEWS, "
    "SYSTEM LOAD PRIMARY KEY, SYSTEM UNLOAD PRIMARY KEY, SYSTEM WAIT LOADING PARTS ON *.*",
    "GRANT TABLE ENGINE ON *",
)

# Settings that change what a text means to the parser, that name files of the server, or that hold SQL in a string,
# where `access` does not see it.
_FIXED_SETTINGS = (
    "implicit_select",
    "dialect",
    "allow_introspection_functions",
    "allow_experimental_eval_table_function",
    "schema_inference_hints",
    "format_schema",
    "format_template_resultset",
    "format_template_row",
    "output_format_schema",
    "additional_table_filters",
    "additional_result_filter",
    "parallel_replicas_custom_key",
    "min_free_disk_bytes_to_perform_insert",
)
_PROFILE = {
    "implicit_select": "0",
    "allow_introspection_functions": "0",
    "input_format_values_interpret_expressions": "0",
    "input_format_values_deduce_templates_of_expressions": "0",
    # The engine would take a thread for each GiB that is free to read with, and one for each four to write: with 8 GB
    # in all it writes with one (docs/warehouse.md). A quarter and an eighth of that do.
    "max_threads_min_free_memory_per_thread": str(256 << 20),
    "max_insert_threads_min_free_memory_per_thread": str(512 << 20),
    # Looking through the parts of a table takes half as long, and a quarter of the CPU, without a thread for each.
    "max_threads_for_indexes": "1",
}


class EngineStartError(MailhouseError):
    """The engine cannot open its data directory."""


def users_configuration(settings: Mapping[str, str]) -> str:
    """The engine's users file: one user, restricted grants, a profile, and settings that a query cannot change."""
    profile = "".join(f"<{name}>{value}</{name}>" for name, value in settings.items())
    fixed = "".join(f"<{name}><const/></{name}>" for name in _FIXED_SETTINGS)
    grants = "".join(f"<query>{escape(grant)}</query>" for grant in _GRANTS)
    return (
        f"<clickhouse><profiles><default>{profile}<constraints>{fixed}</constraints></default></profiles>"
        f"<users><{OWNER}><password></password><networks><ip>::/0</ip></networks><profile>default</profile>"
        f"<quota>default</quota><grants>{grants}</grants></{OWNER}></users>"
        "<quotas><default/></quotas></clickhouse>\n"
    )


def server_configuration(users_file: Path, *, memory_bytes: int) -> str:
    """The engine's own configuration file."""
    return (
        "<clickhouse>"
        f"<users_config>{escape(str(users_file))}</users_config>"
        f"<max_server_memory_usage>{memory_bytes}</max_server_memory_usage>"
        "<mark_cache_size>268435456</mark_cache_size>"
        "<logger><level>none</level></logger>"
        "</clickhouse>\n"
    )


def quoted(value: str) -> str:
    """A value as an SQL string."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted_name(name: str) -> str:
    """A name as an SQL identifier."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def escaped_parameter(value: str) -> str:
    """A value as the engine reads that of a `{name:String}` parameter: tab-separated escaping."""
    return value.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


class Handle:
    """One connection to the engine. Not for two threads at once.

    Args:
        connection: chDB's.
        defaults: settings of the server's profile; `SET x = DEFAULT` would give the engine's own default instead.

    Attributes:
        database: the current database.
        is_stale: it holds state that a later user must not meet; it is closed rather than kept.
        has_settings: a SET of the client's own holds in it.
        applied: settings of the last request, which still hold; the next one takes back what it does not want.
    """

    def __init__(self, connection: Any, defaults: Mapping[str, str]) -> None:
        self.connection = connection
        self._defaults = defaults
        self.database = "default"
        self.is_stale = False
        self.has_settings = False
        self.applied: dict[str, str] = {}

    def query(
        self,
        sql: str,
        output_format: str = "TSVRaw",
        parameters: Mapping[str, str] | None = None,
        *,
        hide: str = "",
    ) -> Any:
        """Run a statement whole.

        Raises:
            ServerError: what the engine said.
        """
        try:
            result = self.connection.query(sql, output_format, params=dict(parameters or {}))
        except RuntimeError as error:
            self.discard_output()
            raise ServerError.from_engine(error, hide=hide) from None
        if result.has_error():
            self.discard_output()
            raise ServerError.from_engine(result.error_message(), hide=hide)
        return result

    def discard_output(self) -> None:
        """Throw away what a statement that failed had written: the engine puts it before the next answer otherwise."""
        try:
            self.connection.query("SELECT 1", "TSVRaw")
        except RuntimeError:
            self.is_stale = True

    def text(self, sql: str, parameters: Mapping[str, str] | None = None) -> str:
        """Run a statement; its answer as tab-separated text."""
        return self.query(sql, "TSVRaw", parameters).bytes().decode("utf-8", "replace").rstrip("\n")

    def classify(self, sql: str) -> tuple[Effect, int]:
        """What the statement does, and how many statements the text holds (0: it does not parse)."""
        found = self.connection.classify_query(sql)
        return Effect[found["query_class"].name], found["statement_count"]

    def explain(self, sql: str, parameters: Mapping[str, str] | None = None) -> str:
        """The syntax tree of a statement, which is not run."""
        return self.text("EXPLAIN AST " + sql, parameters)

    def normalise(self, sql: str) -> str:
        """A statement in the engine's own formatting."""
        return self.text("SELECT formatQuery({q:String})", {"q": escaped_parameter(sql)})

    def use(self, database: str) -> None:
        """Make a database the current one."""
        if database != self.database:
            self.query(f"USE {quoted_name(database)}")
            self.database = database

    def set(self, settings: Mapping[str, str]) -> None:
        """Change settings, in one statement."""
        if settings:
            self.query("SET " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items()))

    def apply(self, settings: Mapping[str, str]) -> None:
        """Make these the settings in force, whatever the request before had; nothing to do for the same ones.

        Raises:
            ServerError: an unknown setting or value; the handle is stale then.
        """
        changes = [
            f"{name} = {quoted(value)}" for name, value in settings.items() if self.applied.get(name) != value
        ]
        changes += [self._default(name) for name in self.applied if name not in settings]
        if changes:
            try:
                self.query("SET " + ", ".join(changes))
            except ServerError:
                self.is_stale = True
                raise
            self.applied = dict(settings)

    def reset(self, names: list[str]) -> None:
        """Give settings their defaults back."""
        if names:
            self.query("SET " + ", ".join(self._default(name) for name in names))

    def _default(self, name: str) -> str:
        return f"{name} = {quoted(self._defaults[name]) if name in self._defaults else 'DEFAULT'}"

    def values_of(self, names: list[str]) -> dict[str, str]:
        """The present values of settings."""
        rows = self.text("SELECT " + ", ".join(f"toString(getSetting({quoted(name)}))" for name in names))
        return dict(zip(names, rows.split("\t"), strict=True)) if names else {}

    def close(self) -> None:
        """Give the handle back to the engine."""
        with contextlib.suppress(RuntimeError):
            self.connection.close()


class Session:
    """A handle that a client keeps between requests, by name."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.lock = threading.Lock()
        self.expires_at = 0.0


class Engine:
    """The engine with its data directory open. Thread-safe.

    Attributes:
        spool: folder for data on its way in.
        version: the engine's version, e.g. 26.9.2.1.
        timezone: the server's time zone.
        engines: names of all table engines, database engines and dictionary sources.
        table_functions: names of all table functions.

    Args:
        path: the data directory; made if missing. No other process may have it open.
        memory_bytes: the most that all queries together may use.
        free_disk_bytes: inserts are refused with less free space than this.

    Raises:
        EngineStartError: the engine cannot open the directory.
    """

    def __init__(self, path: Path, *, memory_bytes: int, free_disk_bytes: int) -> None:
        own = path / "embedded"
        own.mkdir(parents=True, exist_ok=True)
        users_file, config_file = own / "users.xml", own / "config.xml"
        # an insert fails as a whole while some space is left, rather than in its middle when there is none
        self._profile = {**_PROFILE, "min_free_disk_bytes_to_perform_insert": str(free_disk_bytes)}
        users_file.write_text(users_configuration(self._profile))
        config_file.write_text(server_configuration(users_file, memory_bytes=memory_bytes))
        self.spool = own / "spool"
        self.spool.mkdir(exist_ok=True)
        # the engine reads a `config.xml` of the working directory, whoever put it there, and resolves files against it
        empty = own / "empty"
        empty.mkdir(exist_ok=True)
        os.chdir(empty)
        self._chdb: Any = _load_chdb()
        # else the engine takes SIGINT and SIGTERM for itself
        self._chdb.set_signal_handlers_enabled(False)
        self._address = f"{path}?config-file={config_file}"
        self._lock = threading.Lock()
        self._idle: list[Handle] = []
        self._idle_readers: list[Handle] = []
        self._sessions: dict[tuple[str, str], Session] = {}
        try:
            self._root = self._open()
        except RuntimeError as error:
            raise EngineStartError(
                f"The engine cannot open {path}: {error}",
                fix="Check that the folder is on a local disk, writable, and not written by a newer chDB.",
            ) from None
        _mount_default_database(self._root, path)
        self._killer = self._open()
        self._killer_lock = threading.Lock()
        self.version = self._root.text("SELECT version()")
        self.timezone = self._root.text("SELECT timezone()")
        self.engines = frozenset(
            self._root.text(
                "SELECT name FROM system.table_engines UNION ALL SELECT name FROM system.database_engines "
                "UNION ALL SELECT name FROM system.dictionary_sources"
            ).split("\n")
        )
        self.table_functions = frozenset(
            self._root.text("SELECT name FROM system.table_functions").split("\n")
        )

    def _open(self) -> Handle:
        return Handle(self._chdb.connect(self._address), self._profile)

    def take(self, database: str, settings: Mapping[str, str], *, is_reader: bool) -> Handle:
        """A handle from the pool, best one left as this request wants it; give it back with `give_back`."""
        pool = self._idle_readers if is_reader else self._idle
        with self._lock:
            # clients repeat themselves: a handle in the same state saves a USE and a SET
            best = max(
                pool,
                key=lambda handle: (handle.database == database) + (handle.applied == settings),
                default=None,
            )
            if best is not None:
                pool.remove(best)
                return best
        return self._fresh(is_reader)

    def give_back(self, handle: Handle, *, is_reader: bool) -> None:
        """Put a handle back into the pool, or close it if it is stale."""
        pool = self._idle_readers if is_reader else self._idle
        with self._lock:
            if not handle.is_stale and len(pool) < _LARGEST_POOL:
                pool.append(handle)
                return
        handle.close()

    def _fresh(self, is_reader: bool) -> Handle:
        handle = self._open()
        if is_reader:
            # a second lock on the door: from 2 there is no way back to 0
            handle.query("SET readonly = 2")
        return handle

    def enter_session(
        self, user: str, name: str, seconds: float, *, must_exist: bool, is_reader: bool
    ) -> Session:
        """A user's session by name, locked for one request; leave it with `leave_session`.

        Raises:
            ServerError: it does not exist though it must, or another request holds it.
        """
        key = (user, name)
        with self._lock:
            now = time.monotonic()
            for other, session in list(self._sessions.items()):
                if session.expires_at < now and session.lock.acquire(blocking=False):
                    self._sessions.pop(other).handle.close()
            session = self._sessions.get(key)
            if session is None:
                if must_exist:
                    raise ServerError(SESSION_NOT_FOUND, f"Session {name} not found")
                session = self._sessions[key] = Session(self._fresh(is_reader))
            session.expires_at = now + seconds
        if not session.lock.acquire(timeout=_SESSION_PATIENCE):
            raise ServerError(SESSION_IS_LOCKED, f"Session {name} is locked by a concurrent client")
        session.expires_at = time.monotonic() + seconds
        return session

    def leave_session(self, session: Session) -> None:
        """Let the session's next request in."""
        session.lock.release()

    def kill(self, tag: str) -> None:
        """Ask the engine to stop the query that carries a tag; it may not have begun, so ask again if need be."""
        mark = quoted(tag)
        with self._killer_lock:
            try:
                self._killer.query(
                    f"KILL QUERY WHERE (endsWith(query, {mark}) OR startsWith(query, {mark})) ASYNC"
                )
            except ServerError as error:
                log.warning("a query could not be stopped: %s", error)

    def kill_all(self) -> None:
        """Ask the engine to stop every query."""
        with self._killer_lock, contextlib.suppress(ServerError):
            self._killer.query("KILL QUERY WHERE query NOT LIKE 'KILL QUERY%' ASYNC")

    def close(self) -> None:
        """Close every handle, and with the last one the engine."""
        with self._lock:
            handles = [
                *self._idle,
                *self._idle_readers,
                *(session.handle for session in self._sessions.values()),
            ]
            self._idle.clear()
            self._idle_readers.clear()
            self._sessions.clear()
        for handle in (*handles, self._killer, self._root):
            handle.close()


_DATABASE_UUID = re.compile(r"UUID '([0-9a-f-]{36})'")


def _load_chdb() -> Any:
    """chDB's extension module, without the package around it, which would load pyarrow and numpy (100 MB, half a
    second) and open an engine of its own first."""
    found = importlib.util.find_spec("chdb")
    library = Path(found.origin).parent / "_chdb.abi3.so" if found and found.origin else None
    if library is None or not library.exists():
        import chdb

        return chdb._chdb  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType]
    if sys.platform == "linux":
        # as the package does: its own allocator must win over that of other libraries
        ctypes.CDLL(str(library), mode=sys.getdlopenflags() | _RTLD_DEEPBIND)
    spec = importlib.util.spec_from_file_location("_chdb", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _mount_default_database(root: Handle, path: Path) -> None:
    """Put an ordinary database in the place of the engine's own `default`.

    The engine's is an overlay that also shows the server's files as tables. It lives in memory only, so it is taken
    away at every start, and the one in the data directory is attached (the first time: made).
    """
    metadata = path / "metadata"
    root.query("USE system")
    root.database = "system"
    stored, kept = metadata / "default.sql", metadata / "default.sql.kept"
    if stored.exists():
        stored.replace(kept)
    if kept.exists():
        # attached as new but with the old UUID: the short form of ATTACH fails where the database holds no table, since
        # the engine did not load it then. `kept` outlives a crash in between.
        definition = _DATABASE_UUID.search(kept.read_text())
        if definition is None:
            raise EngineStartError(
                f"{kept} does not say which database it is.", fix="Restore it from a backup."
            )
        root.query("DETACH DATABASE default")
        root.query(f"ATTACH DATABASE default UUID '{definition[1]}' ENGINE = Atomic")
        kept.unlink()
    else:
        folder = metadata / "default"
        if folder.is_dir() and any(folder.iterdir()):
            raise EngineStartError(
                f"{path} holds tables of another program that used chDB in it.", fix="Choose an empty folder."
            )
        root.query("DROP DATABASE default SYNC")
        root.query("CREATE DATABASE default ENGINE = Atomic")
    if root.text("SELECT engine FROM system.databases WHERE name = 'default'") != "Atomic":
        raise ServerError(UNKNOWN_EXCEPTION, "the database default is not an ordinary one")
