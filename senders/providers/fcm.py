"""Firebase Cloud Messaging: push messages through the HTTP v1 API.

One call a message (the API for batches is gone). Each names itself to the device, as Android's tag and Apple's collapse
id, so that the same message replaces itself there. The access token comes from a service account (RFC 7523).
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import orjson
from pydantic import SecretStr

from senders.message import Delivery, Message, RejectReason, Status
from senders.providers.base import Capabilities
from senders.providers.http import Call, HttpProvider, TokenAuth, Verdict, json_object, required
from senders.providers.webhooks import MESSAGE_ID, text
from senders.settings import SenderSettings
from warehouse.errors import SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

BASE_URL = "https://fcm.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
MOST_BYTES = 4096
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
#: What to wait after QUOTA_EXCEEDED if the answer does not say, seconds.
_QUOTA_WAIT = 60.0

#: Google's word for the error, the more particular one first.
_VERDICTS = {
    "UNREGISTERED": Verdict.BAD,
    "SENDER_ID_MISMATCH": Verdict.BAD,
    "INVALID_ARGUMENT": Verdict.BAD,
    "QUOTA_EXCEEDED": Verdict.LATER,
    "UNAVAILABLE": Verdict.LATER,
    "INTERNAL": Verdict.LATER,
    "THIRD_PARTY_AUTH_ERROR": Verdict.REFUSED,
    "UNAUTHENTICATED": Verdict.REFUSED,
    "PERMISSION_DENIED": Verdict.REFUSED,
    "NOT_FOUND": Verdict.REFUSED,
    "RESOURCE_EXHAUSTED": Verdict.LATER,
}
_REASONS = {
    "UNREGISTERED": RejectReason.BOUNCED,
    "SENDER_ID_MISMATCH": RejectReason.BOUNCED,
    "INVALID_ARGUMENT": RejectReason.INVALID,
}


class FcmProvider(HttpProvider):
    """Send push messages of one Firebase project.

    Args:
        account: the service account's key file, parsed.
    """

    name = "fcm"
    capabilities = Capabilities(channel="push", dispatch_window=100, wants_raw=False)

    def __init__(self, account: Mapping[str, Any], *, base_url: str = BASE_URL, **options: Any) -> None:
        try:
            project, self._email = str(account["project_id"]), str(account["client_email"])
            self._token_url, private = str(account["token_uri"]), str(account["private_key"])
        except KeyError as error:
            raise SettingsError(
                f"The service account in MAILHOUSE_FCM_CREDENTIALS has no {error.args[0]}.",
                fix="Download its key from Firebase, Project settings, Service accounts, as it is.",
            ) from None
        self._key_id, self._key = str(account.get("private_key_id", "")), _private_key(private)
        super().__init__(base_url, auth=TokenAuth(self._fetch_token), secrets=[SecretStr(private)], **options)
        self._path = f"/v1/projects/{quote(project, safe='')}/messages:send"

    @classmethod
    def from_settings(cls, settings: SenderSettings) -> FcmProvider:
        """The provider of the settings.

        Raises:
            SettingsError: there is no key file, or it is none.
        """
        path = required(
            settings.fcm_credentials, "fcm", "a service account", "fcm_credentials",
            "Set it to the key file from Firebase, Project settings, Service accounts.",
        )  # fmt: skip
        try:
            account = json.loads(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"MAILHOUSE_FCM_CREDENTIALS names {path}, which cannot be read: {type(error).__name__}.",
                fix="Set it to the key file from Firebase, Project settings, Service accounts.",
            ) from None
        if not isinstance(account, dict):
            raise SettingsError(f"{path} is no service account's key.", fix="Download it anew from Firebase.")
        return cls(account, connections=settings.http_connections)

    def _fetch_token(self) -> httpx.Response:
        return httpx.post(
            self._token_url, data={"grant_type": _GRANT, "assertion": self._assertion()}, timeout=30
        )

    def _assertion(self) -> str:
        """A JWT that asks for a token, signed by the service account."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

        now = int(time.time())
        header = {"alg": "RS256", "typ": "JWT", **({"kid": self._key_id} if self._key_id else {})}
        claims = {"iss": self._email, "scope": SCOPE, "aud": self._token_url, "iat": now, "exp": now + 3600}
        signed = b".".join(_base64url(orjson.dumps(part)) for part in (header, claims))
        return (signed + b"." + _base64url(self._key.sign(signed, PKCS1v15(), hashes.SHA256()))).decode()

    def problem(self, message: Message) -> str:
        """A device's token, and at most 4,096 bytes."""
        if not message.address:
            return "no device token"
        size = len((message.subject + message.text).encode())
        return f"{size} bytes, and FCM takes {MOST_BYTES}" if size > MOST_BYTES else ""

    def calls(self, batch: Sequence[Message]) -> Iterator[Call]:
        """One call a message."""
        for message in batch:
            payload = {
                "message": {
                    "token": message.address,
                    "notification": {"title": message.subject, "body": message.text},
                    "data": {MESSAGE_ID: message.message_id},
                    "android": {"notification": {"tag": message.message_id}},
                    "apns": {"headers": {"apns-collapse-id": message.message_id[:64]}},
                }
            }
            yield Call([message], self._path, json=orjson.dumps(payload))

    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """The name that FCM gave the message."""
        (message,) = call.messages
        name = response.json()["name"]
        if not isinstance(name, str):
            raise TypeError("no name")
        return [
            Delivery(message.message_id, Status.SENT, provider_message_id=name, reply=f"200 {name}"[:500])
        ]

    def judge(self, response: httpx.Response) -> Verdict:
        """By Google's words; by status where there are none."""
        if not response.is_success:
            for word in _words(response):
                if word in _VERDICTS:
                    return _VERDICTS[word]
        return super().judge(response)

    def is_own(self, response: httpx.Response) -> bool:
        """Google's errors have an object `error`."""
        return isinstance((json_object(response) or {}).get("error"), dict)

    def reject_reason(self, response: httpx.Response) -> RejectReason:
        """`bounced`: the app is gone from the device, or the token is another project's.

        It is good for nothing then; `senders.export` tells the models so.
        """
        return next((_REASONS[word] for word in _words(response) if word in _REASONS), RejectReason.OTHER)

    def retry_after(self, response: httpx.Response) -> float | None:
        """What the answer asks for; a minute for a quota that is used up."""
        asked = super().retry_after(response)
        return _QUOTA_WAIT if asked is None and response.status_code == 429 else asked


def _private_key(pem: str) -> RSAPrivateKey:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPrivateKey):
        raise SettingsError(
            "The private key in MAILHOUSE_FCM_CREDENTIALS cannot be read.",
            fix="Download it anew from Firebase.",
        )
    return key


def _words(response: httpx.Response) -> list[str]:
    error = (json_object(response) or {}).get("error")
    if not isinstance(error, dict):
        return []
    details = error.get("details")
    particular = (
        [text(d.get("errorCode")) for d in details if isinstance(d, dict)]
        if isinstance(details, list)
        else []
    )
    return [word for word in (*particular, text(error.get("status"))) if word]


def _base64url(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")
