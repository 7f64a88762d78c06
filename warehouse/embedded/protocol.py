"""What a request of ClickHouse's HTTP protocol says: parameters, settings, external tables."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from urllib.parse import parse_qsl

from warehouse.embedded.errors import (
    AUTHENTICATION_FAILED,
    BAD_ARGUMENTS,
    INVALID_SESSION_TIMEOUT,
    UNKNOWN_SETTING,
    ServerError,
)

# parameters of the protocol itself; every other one is a setting for the query
_RESERVED = frozenset((
    "query", "database", "default_format", "user", "password", "query_id", "session_id", "session_timeout",
    "session_check", "compress", "decompress", "enable_http_compression", "wait_end_of_query",
    "buffer_size", "stacktrace", "quota_key", "role", "client_protocol_version",
    "http_zlib_compression_level", "network_compression_method", "add_http_cors_header",
    "send_progress_in_http_headers", "http_headers_progress_interval_ms",
    "http_write_exception_in_output_format", "cancel_http_readonly_queries_on_client_close",
))  # fmt: skip
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_LONGEST_SESSION = 3600.0

_CONTENT_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        ("JSON", "JSONCompact", "JSONStrings", "JSONCompactStrings", "JSONColumnsWithMetadata", "JSONColumns"),
        "application/json; charset=UTF-8",
    ),
    **dict.fromkeys(("JSONEachRow", "JSONStringsEachRow", "JSONLines", "NDJSON"),
        "application/x-ndjson; charset=UTF-8",
    ),
    "CSV": "text/csv; charset=UTF-8; header=absent",
    **dict.fromkeys(("CSVWithNames", "CSVWithNamesAndTypes"), "text/csv; charset=UTF-8; header=present"),
    **dict.fromkeys(
        ("TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "TabSeparatedWithNames", "TSVWithNames",
         "TabSeparatedWithNamesAndTypes", "TSVWithNamesAndTypes"),
        "text/tab-separated-values; charset=UTF-8",
    ),
    **dict.fromkeys(
        ("Native", "RowBinary", "RowBinaryWithNames", "RowBinaryWithNamesAndTypes", "Arrow", "ArrowStream", "Parquet",
         "ORC", "Avro", "MsgPack", "BSONEachRow", "Npy"),
        "application/octet-stream",
    ),
    "XML": "application/xml; charset=UTF-8",
}  # fmt: skip


def content_type(output_format: str) -> str:
    """The Content-Type a ClickHouse server gives with a format."""
    return _CONTENT_TYPES.get(output_format, "text/plain; charset=UTF-8")


@dataclass(frozen=True)
class ExternalTable:
    """A table that travels with the query."""

    name: str
    structure: str
    format: str
    data: bytes


@dataclass
class Request:
    """A query as the client asked it, apart from its body.

    Attributes:
        parameters: the URL's parameters and, in a multipart body, its fields.
        headers: header values by lower-case name.
    """

    method: str
    parameters: dict[str, str]
    headers: Mapping[str, str]
    external: list[ExternalTable] = field(default_factory=list)

    @classmethod
    def parse(cls, method: str, query_string: bytes, headers: Mapping[str, str]) -> Request:
        """Read the URL and the headers that stand for parameters."""
        try:
            pairs = parse_qsl(
                query_string.decode("ascii"), keep_blank_values=True, max_num_fields=2000, errors="strict"
            )
        except ValueError as error:
            raise ServerError(BAD_ARGUMENTS, f"The URL's parameters cannot be read: {error}") from None
        parameters = dict(pairs)
        for header, name in (
            ("x-clickhouse-database", "database"),
            ("x-clickhouse-format", "default_format"),
        ):
            if headers.get(header):
                parameters.setdefault(name, headers[header])
        return cls(method, parameters, headers)

    @property
    def is_read_only(self) -> bool:
        """GET and HEAD only read, whoever asks."""
        return self.method in ("GET", "HEAD")

    @property
    def credentials(self) -> tuple[str, str]:
        """User and password: from ClickHouse's headers, else Authorization, else the URL."""
        if "x-clickhouse-user" in self.headers:
            return self.headers["x-clickhouse-user"], self.headers.get("x-clickhouse-key", "")
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                raise ServerError(AUTHENTICATION_FAILED, "Invalid authorization header") from None
            return user, password
        return self.parameters.get("user", "default"), self.parameters.get("password", "")

    @property
    def database(self) -> str:
        """The database the query runs in, '' for the session's or the default one."""
        return self.parameters.get("database", "")

    @property
    def default_format(self) -> str:
        """The output format for a query that names none."""
        return self.parameters.get("default_format") or "TabSeparated"

    @property
    def session(self) -> tuple[str, float, bool] | None:
        """Session id, seconds it may idle, and whether it must exist already."""
        name = self.parameters.get("session_id")
        if not name:
            return None
        try:
            seconds = float(self.parameters.get("session_timeout") or 60)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= _LONGEST_SESSION:
            raise ServerError(
                INVALID_SESSION_TIMEOUT,
                f"Invalid session timeout '{self.parameters['session_timeout']}', maximum is {_LONGEST_SESSION:.0f}",
            )
        return name, seconds, self.parameters.get("session_check") == "1"

    @property
    def settings(self) -> dict[str, str]:
        """Settings that hold for this query alone.

        Raises:
            ServerError: a name that cannot be a setting's.
        """
        known = {external.name for external in self.external}
        found: dict[str, str] = {}
        for name, value in self.parameters.items():
            stem, _, end = name.rpartition("_")
            if (
                name in _RESERVED
                or name.startswith("param_")
                or (end in ("structure", "types", "format") and stem in known)
            ):
                continue
            if not _SETTING.match(name):
                raise ServerError(
                    UNKNOWN_SETTING,
                    f"Setting '{name}' is neither a builtin setting nor started with the prefix 'SQL_'",
                )
            found[name] = value
        return found

    @property
    def query_parameters(self) -> dict[str, str]:
        """Values of `{name:Type}` in the text."""
        return {name[6:]: value for name, value in self.parameters.items() if name.startswith("param_")}

    def is_on(self, parameter: str) -> bool:
        """Whether a 0/1 parameter of the protocol is set."""
        return self.parameters.get(parameter, "") in ("1", "true")


def read_multipart(request: Request, body: bytes) -> None:
    """Move a multipart body's fields into the parameters and its files into external tables.

    Raises:
        ServerError: no boundary, a part without a name, a file without a structure.
    """
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary:
        raise ServerError(BAD_ARGUMENTS, "The multipart body has no boundary")
    delimiter = b"\r\n--" + boundary.encode("latin-1")
    files: dict[str, bytes] = {}
    parts = (b"\r\n" + body).split(delimiter)
    if len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise ServerError(BAD_ARGUMENTS, "The multipart body has no end")
    for part in parts[1:-1]:
        head, gap, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        if not gap:
            raise ServerError(BAD_ARGUMENTS, "A part of the multipart body has no headers")
        described = Message()
        for line in head.decode("utf-8", "replace").split("\r\n"):
            key, _, value = line.partition(":")
            described[key] = value.strip()
        name = described.get_param("name", header="content-disposition")
        if not isinstance(name, str) or not name:
            raise ServerError(BAD_ARGUMENTS, "A part of the multipart body has no name")
        if described.get_param("filename", header="content-disposition") is None:
            request.parameters[name] = data.decode("utf-8", "replace")
        else:
            files[name] = data
    for name, data in files.items():
        structure = request.parameters.get(f"{name}_structure", "")
        types = request.parameters.get(f"{name}_types", "")
        if not structure and types:
            structure = ", ".join(f"_{place} {kind}" for place, kind in enumerate(_split_types(types), 1))
        if not structure:
            raise ServerError(
                BAD_ARGUMENTS, f"Neither structure nor types are given for external table '{name}'"
            )
        request.external.append(
            ExternalTable(name, structure, request.parameters.get(f"{name}_format") or "TabSeparated", data)
        )


def _split_types(types: str) -> list[str]:
    """Split at commas outside parentheses: `Decimal(9, 2), String`."""
    found, depth, start = [], 0, 0
    for place, letter in enumerate(types):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            found.append(types[start:place].strip())
            start = place + 1
    return [*found, types[start:].strip()]
