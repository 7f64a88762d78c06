"""One error tree for the whole of Mailhouse.

Every error that a person can cause or mend is a `MailhouseError`: one sentence that says what is wrong and where,
and one that says how to mend it. The `mailhouse` command prints both and exits with code 2; Dagster shows them as
the run's failure. Anything else that escapes is a defect.
"""

from __future__ import annotations


class MailhouseError(Exception):
    """Something a person can mend.

    Args:
        message: what is wrong, naming the file, line, setting or service.
        fix: what to do about it, in the imperative; shown on a line of its own.
    """

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  Fix: {self.fix}" if self.fix else self.message


class SettingsError(MailhouseError):
    """A setting is missing, misspelt or out of range."""


class InputError(MailhouseError):
    """A file that a person gave us cannot be read or does not say what it must."""


class WarehouseError(MailhouseError):
    """ClickHouse refused a query.

    Attributes:
        code: ClickHouse's numeric error code, 0 where there was none.
    """

    def __init__(self, message: str, *, fix: str = "", code: int = 0) -> None:
        super().__init__(message, fix=fix)
        self.code = code


class WarehouseUnavailable(WarehouseError):  # noqa: N818 - says what is the matter, as `Timeout` would
    """ClickHouse does not answer."""
