"""The one way to talk to ClickHouse: clickhouse-connect underneath, polars frames in and out over Arrow."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.client import IncompleteRead
from typing import Any

import clickhouse_connect
import polars as pl
import pyarrow as pa
from clickhouse_connect.driver.exceptions import ClickHouseError
from clickhouse_connect.driver.external import ExternalData
from urllib3.exceptions import HTTPError

from warehouse.cluster import Cluster
from warehouse.errors import WarehouseError, WarehouseUnavailable
from warehouse.settings import MailhouseSettings, WarehouseAddress

_CODE = re.compile(r"code:? (\d+)", re.IGNORECASE)
_BROKEN_OFF = re.compile(r"Code: (\d+)\. DB::Exception: (.*?)(?: \(version |$)", re.DOTALL)
_EXCEPTION = re.compile(r"DB::Exception: (.*?)(?: \(version [^)]*\))?\s*$", re.DOTALL)

INSERT_SETTINGS = {
    # JSON columns keep what was written: a string that looks like a date stays a string
    "input_format_try_infer_dates": "0",
    "input_format_try_infer_datetimes": "0",
}


class Warehouse:
    """A connection to ClickHouse; opened on first use, safe to share between threads.

    Args:
        address: where ClickHouse answers.
        comment: who asks, e.g. `dagster run 1a2b`; put into `log_comment`, so that the query log tells.
        cluster: how tables that `define` makes are replicated.
        settings: where the key of erasures is (`warehouse.erasures`); left out, those in force.
    """

    def __init__(
        self,
        address: WarehouseAddress,
        *,
        comment: str = "",
        cluster: Cluster | None = None,
        settings: MailhouseSettings | None = None,
    ) -> None:
        self.address = address
        self.comment = comment
        self.cluster = cluster or Cluster()
        self.settings = settings
        self._client: Any = None

    @classmethod
    def connect(cls, settings: MailhouseSettings | None = None, *, comment: str = "") -> Warehouse:
        """The warehouse of the settings in force."""
        settings = settings or MailhouseSettings.load()
        return cls(settings.warehouse, comment=comment, cluster=settings.cluster, settings=settings)

    @property
    def client(self) -> Any:
        """The underlying clickhouse-connect client.

        Raises:
            WarehouseUnavailable: nothing answers at the address, or it refuses our password.
        """
        if self._client is None:
            with self._errors():
                self._client = clickhouse_connect.get_client(
                    interface=self.address.scheme,
                    host=self.address.host,
                    port=self.address.port,
                    username=self.address.user,
                    password=self.address.password,
                    autogenerate_session_id=False,
                    client_name="mailhouse",
                    settings={"log_comment": self.comment} if self.comment else {},
                )
        return self._client

    def execute(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """Run a statement that returns no rows. Parameters are `{name:Type}` in the text."""
        with self._errors():
            self.client.command(sql, parameters=dict(parameters or {}), settings=dict(settings or {}))

    def define(self, sql: str) -> None:
        """Run a statement that makes, changes or drops a table or database, on the whole cluster if there is one."""
        self.execute(self.cluster.ddl(sql))

    def frame(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        external: Mapping[str, pl.DataFrame] | None = None,
        external_types: Mapping[str, Mapping[str, str]] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> pl.DataFrame:
        """Run a query; all rows as one frame. Strings come as strings, `DateTime64` in UTC.

        Args:
            sql: one query.
            parameters: values of `{name:Type}` in the text.
            external: frames that the query may read as tables by these names; they travel with it.
            external_types: ClickHouse types of some of their columns, where others than those of `_EXTERNAL_TYPES`.
            settings: ClickHouse settings for this query alone.
        """
        with self._errors():
            table = self.client.query_arrow(
                sql,
                parameters=dict(parameters or {}),
                settings={"output_format_arrow_string_as_string": "1", **(settings or {})},
                external_data=_external_data(external, external_types or {}) if external else None,
            )
        return _frame(pl.from_arrow(table))

    def batches(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        rows: int = 10_000,
        external: Mapping[str, pl.DataFrame] | None = None,
    ) -> Iterator[pl.DataFrame]:
        """Run a query; frames of up to `rows` rows as they arrive, in bounded memory. `external` as for `frame`."""
        with (
            self._errors(),
            self.client.query_arrow_stream(
                sql,
                parameters=dict(parameters or {}),
                settings={"output_format_arrow_string_as_string": "1", "max_block_size": str(rows)},
                external_data=_external_data(external, {}) if external else None,
            ) as stream,
        ):
            for table in _unbroken(stream):
                frame = _frame(pl.from_arrow(table))
                if frame.height:
                    yield from frame.iter_slices(rows)

    def value(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """The first column of the first row, None if there is no row."""
        frame = self.frame(sql, parameters)
        return frame.item(0, 0) if frame.height else None

    def measured(
        self, sql: str, settings: Mapping[str, str] | None = None
    ) -> tuple[list[Any], dict[str, int]]:
        """Run a query of one row; the row, and what ClickHouse says that it took: `read_rows`, `read_bytes` ..."""
        with self._errors():
            result = self.client.query(sql, settings=dict(settings or {}))
            numbers = {name: int(text) for name, text in result.summary.items() if str(text).isdigit()}
            return list(result.first_row), numbers

    def insert(self, table: str, frame: pl.DataFrame) -> int:
        """Append a frame to a table, columns by name; columns left out take their defaults. Returns the rows."""
        if frame.height:
            with self._errors():
                self.client.insert_arrow(table, frame.to_arrow(), settings=dict(INSERT_SETTINGS))
        return frame.height

    def insert_select(
        self,
        sql: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        external: Mapping[str, pl.DataFrame],
        settings: Mapping[str, str] | None = None,
    ) -> int:
        """Run an `insert ... select` over frames that travel with it, as in `frame`. Returns the rows written."""
        with self._errors():
            summary = self.client.command(
                sql,
                parameters=dict(parameters or {}),
                settings={**INSERT_SETTINGS, **(settings or {})},
                external_data=_external_data(external, {}),
            )
            return int(summary.written_rows)

    def close(self) -> None:
        """Give the connection back; the next call opens a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def __enter__(self) -> Warehouse:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except ClickHouseError as error:
            raise _translated(error, self.address) from error
        except OSError as error:
            raise _unavailable(self.address) from error


_EXTERNAL_TYPES: dict[pl.DataType, str] = {
    pl.String(): "String",
    pl.Int64(): "Int64",
    pl.UInt64(): "UInt64",
    pl.Float64(): "Float64",
    pl.Boolean(): "Bool",
    pl.Datetime("ms", "UTC"): "DateTime64(3, 'UTC')",
}


def _external_data(
    frames: Mapping[str, pl.DataFrame], types: Mapping[str, Mapping[str, str]]
) -> ExternalData:
    data = ExternalData()
    for name, frame in frames.items():
        body = io.BytesIO()
        # the oldest layout: ClickHouse reads no string views
        frame.write_ipc_stream(body, compat_level=pl.CompatLevel.oldest())
        given = types.get(name, {})
        structure = [
            f"`{column}` {given[column] if column in given else _EXTERNAL_TYPES[dtype]}"
            for column, dtype in frame.schema.items()
        ]
        data.add_file(file_name=name, data=body.getvalue(), fmt="ArrowStream", structure=structure)
    return data


def _frame(frame: pl.DataFrame | pl.Series) -> pl.DataFrame:
    assert isinstance(frame, pl.DataFrame)
    return frame


def _unavailable(address: WarehouseAddress) -> WarehouseUnavailable:
    return WarehouseUnavailable(
        f"The warehouse does not answer at {address.url}.",
        fix="Start it with `mailhouse up`, or set MAILHOUSE_WAREHOUSE_URL to a ClickHouse server that runs.",
    )


def _unbroken(stream: Iterable[Any]) -> Iterator[Any]:
    """The tables of an Arrow stream; if it breaks off, ClickHouse's message, which clickhouse-connect leaves unread."""
    try:
        yield from stream
    except (HTTPError, pa.ArrowException) as error:
        raise _broken_off(error) from error


def _broken_off(error: Exception) -> WarehouseError:
    unread = next((cause.partial for cause in error.args if isinstance(cause, IncompleteRead)), b"")
    nested = (
        error.args[1].__cause__ if len(error.args) > 1 and isinstance(error.args[1], IncompleteRead) else None
    )
    if isinstance(nested, IncompleteRead):
        unread += nested.partial
    text = unread.decode("utf-8", "replace")
    found = _BROKEN_OFF.search(text)
    if found is None:
        return WarehouseError(f"ClickHouse broke off in the midst of an answer: {error}.")
    return WarehouseError(f"ClickHouse refused a query: {found.group(2).strip()}", code=int(found.group(1)))


def _translated(error: ClickHouseError, address: WarehouseAddress) -> WarehouseError:
    text = str(error)
    code = _CODE.search(text)
    if code is None:
        # clickhouse-connect wraps connection failures without ClickHouse's code
        return (
            _unavailable(address)
            if "HTTPConnectionPool" in text or "connect" in text.lower()
            else WarehouseError(text)
        )
    found = _EXCEPTION.search(text)
    message = (found.group(1) if found else text).strip()
    number = int(code.group(1))
    if number in (193, 194, 516):
        return WarehouseUnavailable(
            f"The warehouse at {address.url} refuses user {address.user!r}.",
            fix="Correct the user and password in MAILHOUSE_WAREHOUSE_URL.",
            code=number,
        )
    return WarehouseError(f"ClickHouse refused a query: {message}", code=number)
