"""How we prove to Salesforce who we are: OAuth 2.0 by client credentials, a signed JWT, or a refresh token.

A session is kept for the life of the process, for all connectors of the same app and user: Salesforce says of none how
long it lasts, so it is used until it is refused, and renewed once then.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from crm.base import CrmRefusedError, CrmUnavailableError
from crm.http import ATTEMPTS, RETRIED, is_header_text
from crm.settings import CrmSettings, is_here
from warehouse.errors import SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

logger = logging.getLogger(__name__)

Flow = Literal["client_credentials", "jwt", "refresh_token"]
_JWT: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_JWT_SECONDS = 180
_FIXES: Mapping[Flow, str] = {
    "client_credentials": "Check MAILHOUSE_SALESFORCE_CLIENT_ID and _CLIENT_SECRET; the app needs the client "
    "credentials flow with a run-as user, and MAILHOUSE_SALESFORCE_LOGIN_URL must be the organisation's own domain.",
    "jwt": "Check MAILHOUSE_SALESFORCE_CLIENT_ID, _USERNAME and the private key: the app must hold its certificate, "
    "the user must be pre-authorised, and a sandbox logs in at its own domain (MAILHOUSE_SALESFORCE_LOGIN_URL).",
    "refresh_token": "Authorise the app anew and set MAILHOUSE_SALESFORCE_REFRESH_TOKEN; it may have been revoked.",
}
# errors of the token endpoint that pass
_PASSING = frozenset({"unknown_error", "server_error", "temporarily_unavailable", "rate_limit_exceeded"})

_sessions: dict[str, Session] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Session:
    """A token, and where it is good.

    Attributes:
        instance_url: scheme and host of the organisation.
        user_id: who we are there, '' if the answer does not say.
    """

    token: str = field(repr=False)
    instance_url: str
    user_id: str = ""


class Login:
    """Gets sessions.

    Args:
        url: scheme and host of the token endpoint.
        client_id: consumer key.
        flow: which way.
        secret: client secret; None where the app wants none.
        refresh_token: of that flow.
        username, key, audience: of the JWT flow.
        transport: httpx's way out.
        wait: told attempt, seconds at least and the trouble; waits.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        flow: Flow,
        *,
        secret: SecretStr | None = None,
        refresh_token: SecretStr | None = None,
        username: str = "",
        key: RSAPrivateKey | None = None,
        audience: str = "",
        transport: httpx.BaseTransport | None = None,
        wait: Callable[[int, float, str], None],
    ) -> None:
        self._url, self._client_id = url, client_id
        self._flow: Flow = flow
        self._secret, self._refresh_token = secret, refresh_token
        self._username, self._key, self._audience = username, key, audience or _audience(url)
        self._transport, self._wait = transport, wait
        parts = [url, client_id, flow, username, _value(secret), _value(refresh_token), self._audience]
        self._name = hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @classmethod
    def from_settings(
        cls,
        settings: CrmSettings,
        *,
        transport: httpx.BaseTransport | None,
        wait: Callable[[int, float, str], None],
    ) -> Login:
        """What the settings say.

        Raises:
            SettingsError: not exactly one way is set, or the private key cannot be read.
        """
        client_id = settings.salesforce_client_id.strip()
        if not client_id:
            raise SettingsError(
                "Salesforce has no connected app.",
                fix="Set MAILHOUSE_SALESFORCE_CLIENT_ID to the app's consumer key; docs/crm-salesforce.md says how.",
            )
        secret, refresh = settings.salesforce_client_secret, settings.salesforce_refresh_token
        pem = _pem(settings)
        if pem and _value(refresh):
            raise SettingsError(
                "Salesforce is given a private key and a refresh token.",
                fix="Unset MAILHOUSE_SALESFORCE_REFRESH_TOKEN, or the private key.",
            )
        options: dict[str, Any] = {"transport": transport, "wait": wait}
        if pem:
            if not settings.salesforce_username:
                raise SettingsError(
                    "Salesforce is given a private key, but not whom to be.",
                    fix="Set MAILHOUSE_SALESFORCE_USERNAME to the user's name (it looks like an address).",
                )
            return cls(
                settings.salesforce_login_url,
                client_id,
                "jwt",
                username=settings.salesforce_username,
                key=_private_key(pem),
                audience=settings.salesforce_audience,
                **options,
            )
        if _value(refresh):
            return cls(
                settings.salesforce_login_url,
                client_id,
                "refresh_token",
                secret=secret if _value(secret) else None,
                refresh_token=refresh,
                **options,
            )
        if _value(secret):
            return cls(
                settings.salesforce_login_url, client_id, "client_credentials", secret=secret, **options
            )
        raise SettingsError(
            "Salesforce has a connected app, but nothing to prove it.",
            fix="Set MAILHOUSE_SALESFORCE_CLIENT_SECRET, or _PRIVATE_KEY_FILE and _USERNAME, or _REFRESH_TOKEN.",
        )

    def session(self, refused: Session | None = None) -> Session:
        """The session of this process, a new one if there is none or it is the one that was refused.

        Raises:
            CrmRefusedError: Salesforce does not let us in.
            CrmUnavailableError: it does not answer.
        """
        with _lock:
            kept = _sessions.get(self._name)
            if kept is None or (refused is not None and kept.token == refused.token):
                kept = _sessions[self._name] = self._fetch()
            return kept

    def clean(self, text: str) -> str:
        """A text without secrets of ours that it may repeat."""
        kept = _sessions.get(self._name)
        for secret in (_value(self._secret), _value(self._refresh_token), kept.token if kept else ""):
            if secret:
                text = text.replace(secret, "...")
        return text

    def _fetch(self) -> Session:
        trouble = ""
        with httpx.Client(
            transport=_Shared(self._transport) if self._transport is not None else None,
            timeout=httpx.Timeout(30, connect=10),
            follow_redirects=False,
        ) as client:
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    response = client.post(
                        f"{self._url}/services/oauth2/token",
                        data=self._form(),
                        headers={"accept": "application/json", "user-agent": "mailhouse"},
                    )
                except httpx.TransportError as error:
                    trouble = f"does not answer ({type(error).__name__})"
                else:
                    answer = _object(response)
                    if response.status_code == 200:
                        return self._session_of(answer or {})
                    code = str((answer or {}).get("error") or "")
                    if response.status_code not in RETRIED and code not in _PASSING:
                        raise self._refused(response.status_code, code, answer or {})
                    trouble = f"answers {response.status_code}"
                self._wait(attempt, 0.0, f"{trouble} on the login")
        raise CrmUnavailableError(
            f"Salesforce {trouble} on the login, however often it was asked.",
            fix="See status.salesforce.com and the network; then run again, it goes on where it stopped.",
        )

    def _form(self) -> dict[str, str]:
        if self._flow == "jwt":
            return {"grant_type": _JWT, "assertion": self._assertion()}
        form = {"grant_type": self._flow, "client_id": self._client_id}
        if self._flow == "refresh_token":
            form["refresh_token"] = _value(self._refresh_token)
        if self._secret is not None:
            form["client_secret"] = _value(self._secret)
        return form

    def _assertion(self) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        assert self._key is not None
        claims = {
            "iss": self._client_id,
            "sub": self._username,
            "aud": self._audience,
            "exp": int(time.time()) + _JWT_SECONDS,
        }
        signed = b".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256"}, claims))
        return (signed + b"." + _base64url(self._key.sign(signed, PKCS1v15(), hashes.SHA256()))).decode()

    def _session_of(self, answer: dict[str, Any]) -> Session:
        token, url = answer.get("access_token"), str(answer.get("instance_url") or "")
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme != "https" and not (parts.scheme == "http" and is_here(host)):
            raise CrmRefusedError(
                "Salesforce's answer to the login names no https address, where the token could be read on its way.",
                fix="Correct MAILHOUSE_SALESFORCE_LOGIN_URL: something else seems to answer there.",
            )
        if not isinstance(token, str) or not is_header_text(token) or not host:
            raise CrmRefusedError(
                "Salesforce's answer to the login has no token.",
                fix="Correct MAILHOUSE_SALESFORCE_LOGIN_URL: something else seems to answer there.",
            )
        if self._flow == "refresh_token" and answer.get("refresh_token") not in (
            None,
            _value(self._refresh_token),
        ):
            logger.warning(
                "Salesforce changes the refresh token at each use; turn that off in the connected app"
            )
        place = parts.netloc.rpartition("@")[2]
        return Session(token, f"{parts.scheme}://{place}", str(answer.get("id") or "").rpartition("/")[2])

    def _refused(self, status: int, code: str, answer: dict[str, Any]) -> CrmRefusedError:
        said = self.clean(str(answer.get("error_description") or ""))[:200]
        return CrmRefusedError(
            f"Salesforce refuses the login: {code or status}{f' ({said})' if said else ''}.",
            fix=_FIXES[self._flow],
        )


class _Shared(httpx.BaseTransport):
    """A transport that is another's, so it stays open."""

    def __init__(self, transport: httpx.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._transport.handle_request(request)


def forget_sessions() -> None:
    """Log in anew at the next call, for all."""
    with _lock:
        _sessions.clear()


def _audience(url: str) -> str:
    """Whom a JWT is for: the login server of all organisations, or that of all sandboxes."""
    host = urlsplit(url).hostname or ""
    if host == "test.salesforce.com" or host.endswith(".sandbox.my.salesforce.com"):
        return "https://test.salesforce.com"
    return "https://login.salesforce.com" if host.endswith(".salesforce.com") else url


def _pem(settings: CrmSettings) -> str:
    text, path = _value(settings.salesforce_private_key), settings.salesforce_private_key_file
    if text and path is not None:
        raise SettingsError(
            "Salesforce is given two private keys.",
            fix="Unset MAILHOUSE_SALESFORCE_PRIVATE_KEY or MAILHOUSE_SALESFORCE_PRIVATE_KEY_FILE.",
        )
    if path is None:
        # .env files and secret stores write a key into one line
        return text.replace("\\n", "\n")
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"MAILHOUSE_SALESFORCE_PRIVATE_KEY_FILE names {path}, which cannot be read: {type(error).__name__}.",
            fix="Set it to the private key's PEM file.",
        ) from None


def _private_key(pem: str) -> RSAPrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise SettingsError(
            "Salesforce's private key cannot be read: it is no RSA key in PEM, or has a password.",
            fix="Correct MAILHOUSE_SALESFORCE_PRIVATE_KEY or the file of MAILHOUSE_SALESFORCE_PRIVATE_KEY_FILE.",
        )
    return key


def _value(secret: SecretStr | None) -> str:
    return secret.get_secret_value().strip() if secret is not None else ""


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        answer = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return answer if isinstance(answer, dict) else None
