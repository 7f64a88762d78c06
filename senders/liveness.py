"""Which senders are alive: a process is known by machine, number and start time, so a reused number fools nobody."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from pathlib import Path


@functools.cache
def host() -> str:
    """This machine and process namespace: two containers that share a host name are two hosts."""
    parts = [socket.gethostname()]
    for source in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        try:
            parts.append(str(source.readlink()) if source.is_symlink() else source.read_text().strip())
        except OSError:
            parts.append("")
    return "/".join(parts)[:200]


def process_started_at(process_id: int) -> str:
    """When a process of this machine began, in whatever unit the system keeps; empty if there is no such process."""
    stat = Path(f"/proc/{process_id}/stat")
    if Path("/proc/self/stat").exists():
        try:
            # the command name, in brackets, may hold spaces and brackets itself
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(process_id)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def own_process() -> tuple[str, int, str]:
    """Host, process number and start time of this process."""
    return host(), os.getpid(), process_started_at(os.getpid())
