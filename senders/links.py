"""Links."""
from __future__ import annotations
from senders.unsubscribe import make_token
class Links:
    def __init__(self, key: bytes, base_url: str) -> None:
        self.key, self.base = key, base_url.rstrip("/")
    def unsubscribe(self, message_id: str) -> str:
        return f"{self.base}/unsubscribe/{make_token(self.key, message_id)}"
    def preferences(self, message_id: str) -> str:
        return f"{self.base}/preferences/{make_token(self.key, message_id, 'preferences')}"
