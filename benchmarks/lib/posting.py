"""HTTP clients that cost little: requests made beforehand, answers read for their status alone.

Run as a program it posts from a process of its own and prints one JSON object:

    python benchmarks/lib/posting.py PORT KEY TYPE closed SECONDS CONNECTIONS BATCH     as fast as answers come
    python benchmarks/lib/posting.py PORT KEY TYPE open   SECONDS CONNECTIONS RATE     so many a second, come what may

The open loop posts event number n for the n-th contact of the benchmark and prints when each was due, by the monotonic
clock, which all processes of a machine share: a client that waits for slow answers would not see them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any


def event(number: int, run: str, type_: str) -> dict[str, Any]:
    """One event; as large as shops send."""
    return {
        "type": type_,
        "event_id": f"{run}-{number}",
        "email": f"person{number}@example.com",
        "properties": {
            "number": number % 50,
            "cart_value": 60 + number % 40,
            "currency": "EUR",
            "items": [
                {
                    "product_id": f"P{number % 4000}",
                    "name": "Lamp of the third kind",
                    "quantity": 2,
                    "price": 24.5,
                }
            ],
            "page": {"url": f"https://shop.example/p/{number}", "referrer": "https://search.example/"},
        },
    }


def request(body: bytes, port: int, key: str) -> bytes:
    """A POST, whole."""
    head = (
        f"POST /v1/events HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._buffer = b""
        self._answered: asyncio.Future[int] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = body[length:]
        if self._answered is not None:
            self._answered.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionError("the server hung up"))

    @property
    def is_closed(self) -> bool:
        """Whether the server hung up, as it does with those who are idle for long."""
        return self._transport.is_closing()

    async def post(self, content: bytes) -> int:
        """Send and wait; the status."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(content)
        return await self._answered


async def connected(port: int, number: int) -> list[Client]:
    """So many connections."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Client, "127.0.0.1", port))[1] for _ in range(number)]


async def closed(
    port: int, key: str, type_: str, seconds: float, connections: int, batch: int
) -> dict[str, Any]:
    """Post as fast as answers come."""
    run = f"c{time.monotonic_ns():x}"
    clients = await connected(port, connections)
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    number = 0
    started = time.monotonic()
    until = started + seconds

    async def work(client: Client) -> None:
        nonlocal number
        while time.monotonic() < until:
            first, number = number, number + batch
            events = [event(first + one, run, type_) for one in range(batch)]
            content = request(json.dumps(events if batch > 1 else events[0]).encode(), port, key)
            sent = time.monotonic()
            status = await client.post(content)
            latencies.append(time.monotonic() - sent)
            statuses[status] += 1
            if status == 429:
                await asyncio.sleep(0.2)

    await asyncio.gather(*(work(client) for client in clients))
    latencies.sort()
    return {
        "accepted": (statuses[202] + statuses[200]) * batch,
        "seconds": time.monotonic() - started,
        "statuses": dict(statuses),
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
    }


async def opened(
    port: int, key: str, type_: str, seconds: float, connections: int, rate: float
) -> dict[str, Any]:
    """Post so many a second, whether or not answers come."""
    run = f"o{time.monotonic_ns():x}"
    idle = asyncio.Queue[Client]()
    for client in await connected(port, connections):
        idle.put_nowait(client)
    statuses: Counter[int] = Counter()
    due: dict[int, float] = {}
    tasks: set[asyncio.Task[None]] = set()
    started = time.monotonic() + 0.2

    async def one(number: int) -> None:
        client = await idle.get()
        if client.is_closed:
            [client] = await connected(port, 1)
        body = json.dumps(event(number, run, type_)).encode()
        statuses[await client.post(request(body, port, key))] += 1
        idle.put_nowait(client)

    for number in range(int(seconds * rate)):
        due[number] = started + number / rate
        if (wait := due[number] - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return {"due": due, "statuses": dict(statuses)}


def main() -> None:
    """Post as the arguments say."""
    port, key, type_, how, seconds, connections, number = sys.argv[1:]
    place = int(port), key, type_, float(seconds), int(connections)
    work = closed(*place, int(number)) if how == "closed" else opened(*place, float(number))
    print(json.dumps(asyncio.run(work)))


if __name__ == "__main__":
    main()
