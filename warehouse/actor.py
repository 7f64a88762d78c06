"""Who is at work, for rows that say who did something."""

from __future__ import annotations

import getpass
import os


def own_name() -> str:
    """The user as the operating system knows them; `uid N` where it has no name for them, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"
