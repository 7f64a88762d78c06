"""Render messages and hand them to the provider: in this process, or in several that do nothing else.

The coordinator (`senders.pipeline`) owns the ledger. It gives out windows of messages that the ledger has let go, and
takes back what became of each. A worker process does not outlive the coordinator; of a worker that dies, its journal
(`senders.journal`) knows what became of the windows that it held.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import marshal
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from campaigns.permissions import ADDRESS_COLUMNS
from senders.composing import Batch, Composer, Envelope, RecipientError, keep_heap, name_of
from senders.event_context import EVENT_COLUMN
from senders.journal import Journal, Journals, Marks
from senders.message import Address, Delivery, Message, Reason, RejectReason, Status
from senders.providers import provider_class
from senders.providers.base import Provider, ProviderError, unanswered
from senders.rows import Rows
from senders.templates import RenderError, Template
from warehouse.errors import MailhouseError

if TYPE_CHECKING:
    from senders.plan import SendPlan
    from senders.settings import SenderSettings

#: Windows that a worker is given at once: one at hand, one to go on with.
_AHEAD = 2
_MOST_DEATHS = 3
#: Of `gc.set_threshold`, for processes that handle windows.
GARBAGE_THRESHOLDS = (50_000, 20, 100)
_ROOT = Path(__file__).resolve().parent.parent  # where a worker finds this code
_STATUSES = {status.value: status for status in Status}
_PR_SET_PDEATHSIG = 1
#: `Delivery._make` without counting the fields.
_AS_DELIVERY = partial(tuple.__new__, Delivery)


class WorkerError(MailhouseError):
    """Worker processes die or do not start."""


@dataclass(frozen=True, slots=True)
class Window:
    """Messages that go out together.

    Attributes:
        row_ids: rows of the ledger.
        message_ids: of the same messages.
        rows: of the audience, in that order: the columns that messages need.
        tries: how often they have been handed over, this time included.
    """

    row_ids: Sequence[int]
    message_ids: Sequence[str]
    rows: Rows
    tries: int = 1

    def only(self, positions: Sequence[int], *, tries: int | None = None) -> Window:
        """Some of the messages."""
        return Window(
            [self.row_ids[at] for at in positions],
            [self.message_ids[at] for at in positions],
            self.rows.only(positions),
            self.tries if tries is None else tries,
        )


@dataclass(slots=True)
class Answer:
    """What became of a window: a delivery and a subject for each message, or why none was handed over.

    Attributes:
        error: the provider refused or did not answer; nothing of the window was handed over.
        defect: what went wrong in a worker's own code; the deliveries are `unknown`.
    """

    deliveries: list[Delivery] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    error: ProviderError | None = None
    defect: str = ""

    @classmethod
    def of(
        cls, window: Window, made: Sequence[Message | Delivery], deliveries: Mapping[str, Delivery]
    ) -> Answer:
        """The answer to a window, from what was composed and what the provider said of it, by message id."""
        return cls(
            [
                one if isinstance(one, Delivery) else deliveries.get(message_id) or unanswered(message_id)
                for message_id, one in zip(window.message_ids, made, strict=True)
            ],
            [one.subject if isinstance(one, Message) else "" for one in made],
        )

    def packed(self) -> bytes:
        """The answer for another process of ours, which runs the same Python."""
        if self.error is not None or self.defect:
            return b"p" + pickle.dumps(self)
        columns = [list(column) for column in zip(*self.deliveries, strict=True)]
        if columns:
            columns[1], columns[2] = list(map(str, columns[1])), list(map(str, columns[2]))
        # a tenth of what pickle takes for as many objects
        return b"m" + marshal.dumps((columns, self.subjects))

    @classmethod
    def unpacked(cls, content: bytes) -> Answer:
        """What `packed` was given; of trusted bytes only."""
        body = memoryview(content)[1:]
        if content[:1] == b"p":
            return pickle.loads(body)  # noqa: S301
        columns, subjects = marshal.loads(body)  # noqa: S302
        if columns:
            columns[1] = [_STATUSES[status] for status in columns[1]]
        return cls(list(map(_AS_DELIVERY, zip(*columns, strict=True))), subjects)


class Worker:
    """Renders windows and hands them over.

    Args:
        envelope: of the plan's messages.
        clock_offset: seconds that are added to the time.
    """

    def __init__(
        self,
        plan: SendPlan,
        envelope: Envelope,
        template: Template,
        provider: Provider,
        *,
        clock_offset: float = 0.0,
    ) -> None:
        self.plan, self.template, self.provider = plan, template, provider
        self._clock_offset = timedelta(seconds=clock_offset)
        self._address_column = ADDRESS_COLUMNS.get(plan.channel, "")
        self._envelope = envelope
        self._composer = Composer(template, self._envelope)
        self.sender = envelope.sender

    def work(self, window: Window, marks: Marks | None = None) -> Answer:
        """Render a window and hand over what could be rendered.

        Args:
            marks: notes of what becomes of each message.
        """
        self.provider.marks = marks
        making = _Making(self, window)
        try:
            deliveries = self.provider.send_each(window.message_ids, making.make)
        except ProviderError as error:
            return Answer(error=error)
        return Answer(deliveries, making.subjects)

    def compose(self, window: Window) -> list[Message | Delivery]:
        """A message for each row, or why there is none."""
        making = _Making(self, window)
        return [making.make(position) for position in range(len(window.message_ids))]

    def batch(self, window: Window, now: datetime) -> Batch:
        """Whole messages as bytes, for providers that take those."""
        return Batch(
            self._composer, window.rows, window.message_ids, now, variants=window.rows.texts("variant")
        )

    def now(self) -> datetime:
        """When messages are made, by our clock; to the millisecond."""
        now = datetime.now(UTC) + self._clock_offset
        return now.replace(microsecond=now.microsecond // 1000 * 1000)

    def in_parts(
        self, contact: dict[str, Any], items: Sequence[Any], variant: str, message_id: str, now: datetime
    ) -> Message:
        """Subject, HTML and text, for providers that put messages together themselves."""
        plan, envelope = self.plan, self._envelope
        context = self._composer.context(contact, items, message_id, now, variant)
        rendered = self.template.render(context)
        headers = envelope.headers
        if envelope.is_marketing:
            headers = (
                ("List-Unsubscribe", f"<{context['unsubscribe_url']}>"),
                ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
                *headers,
            )
        return Message.in_pieces(
            rendered.html_pieces,
            rendered.text_pieces,
            message_id=message_id,
            contact_id=contact["contact_id"],
            sender=envelope.sender,
            recipient=Address(contact["email"], name_of(contact)),
            subject=rendered.subject,
            sent_at=now.replace(microsecond=0),
            reply_to=envelope.reply_to,
            headers=headers,
            attachments=self.template.in_locale(contact.get("locale")).source.attachments,
            address=str(contact.get(self._address_column) or "") if self._address_column else "",
            deliver_at=now + plan.hold if plan.hold else None,
            is_tracked=plan.is_tracked,
        )


class _Making:
    """Makes the messages of a window, each when its turn comes.

    Attributes:
        subjects: of those made so far, by position.
    """

    def __init__(self, worker: Worker, window: Window) -> None:
        self._worker, self._message_ids = worker, window.message_ids
        self._now = worker.now()
        self._sent_at = self._now.replace(microsecond=0)
        rows = window.rows
        if worker.provider.capabilities.wants_raw:
            self._batch = worker.batch(window, self._now)
            self._contact_ids, self._emails = (rows.columns[name].values for name in ("contact_id", "email"))
            self.subjects, self.make = self._batch.subjects, self._written
        else:
            self._parts = rows.contacts(), rows.recommendations(), rows.texts("variant")
            self.subjects, self.make = [""] * rows.height, self._in_parts

    def _written(self, position: int) -> Message | Delivery:
        raw = self._batch.make(position)
        message_id = self._message_ids[position]
        if isinstance(raw, RenderError):
            return _not_rendered(message_id, raw)
        return Message.composed(
            raw,
            message_id=message_id,
            contact_id=self._contact_ids[position],
            sender=self._worker.sender,
            recipient=Address(self._emails[position]),
            subject=self.subjects[position],
            sent_at=self._sent_at,
        )

    def _in_parts(self, position: int) -> Message | Delivery:
        message_id = self._message_ids[position]
        contacts, products, variants = self._parts
        try:
            message = self._worker.in_parts(
                contacts[position], products[position], variants[position], message_id, self._now
            )
        except RenderError as error:
            return _not_rendered(message_id, error)
        except ValueError as error:
            return Delivery(message_id, Status.INVALID, RejectReason.INVALID, reply=str(error))
        self.subjects[position] = message.subject
        return message


def _not_rendered(message_id: str, error: RenderError) -> Delivery:
    if isinstance(error, RecipientError):
        return Delivery(message_id, Status.INVALID, RejectReason.INVALID, reply=str(error))
    return Delivery(message_id, Status.FAILED, Reason.NOT_RENDERED, reply=str(error))


def needed_columns(template: Template, channel: str) -> frozenset[str] | None:
    """Columns of the audience that a worker reads; None for all."""
    if template.columns is None:
        return None
    always = ("contact_id", "email", "first_name", "last_name", "locale", "recommendations", "variant")
    address = ADDRESS_COLUMNS.get(channel)
    event = (EVENT_COLUMN,) if "event" in template.names else ()
    return frozenset((*template.columns, *always, *event, *((address,) if address else ())))


class Workers(ABC):
    """Whoever takes windows and answers for them, in any order."""

    @property
    @abstractmethod
    def is_free(self) -> bool:
        """Whether another window is welcome."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether an answer is still to come."""

    @abstractmethod
    def reserve(self, window: Window) -> None:
        """Note that a window comes next, before the ledger lets it go: whoever dies then has not begun with it."""

    @abstractmethod
    def withdraw(self) -> None:
        """What was reserved does not come after all."""

    @abstractmethod
    def give(self, window: Window) -> None:
        """Hand over what was reserved, or some of it; one at most while `is_free` is false."""

    @abstractmethod
    def answers(self, *, wait: bool) -> list[tuple[Window, Answer]]:
        """Windows that are done.

        Args:
            wait: until there is one, if any is under way.
        """

    def close(self) -> None:  # noqa: B027  (nothing to end in this process)
        """End the processes."""

    @abstractmethod
    def all_recorded(self) -> None:
        """Everything is in the ledger: notes of it may go."""

    #: Whose claims the windows are; set before any is given.
    run_id: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InProcess(Workers):
    """This process, one window at a time."""

    def __init__(self, worker: Worker, journals: Journals | None = None) -> None:
        self._worker = worker
        self._journal = journals.create() if journals is not None else None
        if self._journal is not None:
            self._journal.belongs_to(os.getpid())
        self._number = 0
        self._slot = -1
        self._reserved: Window | None = None
        self._done: list[tuple[Window, Answer]] = []

    @property
    def is_free(self) -> bool:
        return not self._done

    @property
    def is_busy(self) -> bool:
        return bool(self._done)

    def reserve(self, window: Window) -> None:
        self._reserved = window
        if self._journal is not None:
            self._number += 1
            self._slot = self._journal.begin(self._number, self.run_id, window.row_ids)

    def withdraw(self) -> None:
        if self._journal is not None and self._reserved is not None:
            self._journal.withdraw(self._slot)
        self._reserved = None

    def give(self, window: Window) -> None:
        if self._reserved is not window:
            self.withdraw()
            self.reserve(window)
        self._reserved = None
        marks = None if self._journal is None else self._journal.marks(self._slot, window.message_ids)
        self._done.append((window, self._worker.work(window, marks)))

    def answers(self, *, wait: bool) -> list[tuple[Window, Answer]]:
        del wait
        done, self._done = self._done, []
        return done

    def all_recorded(self) -> None:
        if self._journal is not None:
            self._journal.forget()


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker process must know."""

    plan: SendPlan
    envelope: Envelope
    template: Template
    make_provider: Callable[[], Provider]
    clock_offset: float
    journal: Path | None = None
    rows: int = 0


class _Process:
    """One worker process and the windows it holds, oldest first, each with its slot in the journal."""

    def __init__(self, job: _Job, journals: Journals | None) -> None:
        self.journal = journals.create() if journals is not None else None
        if self.journal is not None and journals is not None:
            job = replace(job, journal=self.journal.path, rows=journals.rows)
        self.pipe, far = multiprocessing.Pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "senders.workers", str(far.fileno()), str(os.getpid())],
                pass_fds=(far.fileno(),),
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
            )
        finally:
            far.close()
        self.held: deque[tuple[Window, int]] = deque()
        if self.journal is not None:
            self.journal.belongs_to(self.process.pid)
        self.pipe.send_bytes(pickle.dumps(job))

    def reserve(self, window: Window, number: int, run_id: int) -> int:
        """Note that a window comes next; its slot."""
        return -1 if self.journal is None else self.journal.begin(number, run_id, window.row_ids)

    def give(self, window: Window, slot: int) -> None:
        """Hand a window over."""
        self.held.append((window, slot))
        # if it has died, the answer says so
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(pickle.dumps((slot, window.message_ids, window.rows.packed())))

    def lost(self) -> list[tuple[Window, Answer]]:
        """What is known of the windows that it held when it died."""
        how = f"the sending process ended with code {self.process.returncode}"
        lost: list[tuple[Window, Answer]] = []
        for window, slot in self.held:
            answer = _unknown(window.message_ids, how)
            if self.journal is not None:
                answer.deliveries = self.journal.found(slot, window.message_ids, how)
            lost.append((window, answer))
        return lost

    def close(self) -> None:
        self.pipe.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Processes(Workers):
    """Worker processes, each with a provider and templates of its own.

    Args:
        count: how many; the provider's connections are shared out among them.
        provider: its name; each process makes one of its own.
        journals: where the processes note what becomes of each message; None: nowhere, and what one held that dies is
            of unknown outcome.

    Raises:
        WorkerError: they die one after the other.
    """

    def __init__(
        self,
        count: int,
        plan: SendPlan,
        settings: SenderSettings,
        template: Template,
        provider: str,
        journals: Journals | None = None,
    ) -> None:
        names = ("smtp_connections", "http_connections")
        own = settings.model_copy(update={name: max(1, getattr(settings, name) // count) for name in names})
        self._job = _Job(
            plan,
            Envelope.of(plan, settings),
            template,
            provider_class(provider).maker(own),
            settings.clock_offset,
        )
        self._journals = journals
        self.processes = [_Process(self._job, journals) for _ in range(count)]
        self._dead: list[_Process] = []
        self._number = 0
        self._reserved: tuple[Window, _Process, int] | None = None
        self._require_journals()

    @property
    def is_free(self) -> bool:
        return not self.processes or any(len(one.held) < _AHEAD for one in self.processes)

    @property
    def is_busy(self) -> bool:
        return any(one.held for one in self.processes)

    def reserve(self, window: Window) -> None:
        if not self.processes:
            raise WorkerError(
                f"{len(self._dead)} sending processes died one after the other.",
                fix="Look into the system's log (memory?), then send again; it goes on where it stopped.",
            )
        self._number += 1
        process = min(self.processes, key=lambda one: len(one.held))
        self._reserved = window, process, process.reserve(window, self._number, self.run_id)

    def withdraw(self) -> None:
        if self._reserved is not None:
            _, process, slot = self._reserved
            if process.journal is not None:
                process.journal.withdraw(slot)
            self._reserved = None

    def give(self, window: Window) -> None:
        if self._reserved is None or self._reserved[0] is not window:
            self.withdraw()
            self.reserve(window)
        assert self._reserved is not None
        _, process, slot = self._reserved
        self._reserved = None
        process.give(window, slot)

    def answers(self, *, wait: bool) -> list[tuple[Window, Answer]]:
        busy = {one.pipe: one for one in self.processes if one.held}
        done: list[tuple[Window, Answer]] = []
        ready = multiprocessing.connection.wait(list(busy), None if wait else 0)
        for pipe in ready:
            process = busy[pipe]  # pyright: ignore[reportArgumentType]
            try:
                received = process.pipe.recv_bytes()
            except (EOFError, OSError):
                done += self._died(process)
            else:
                done.append((process.held.popleft()[0], Answer.unpacked(received)))
        return done

    def _died(self, process: _Process) -> list[tuple[Window, Answer]]:
        """Its windows, as far as it is known what became of them; another process takes its place."""
        self.processes.remove(process)
        # only when it certainly ended are its notes the last word
        process.close()
        self._dead.append(process)
        if len(self._dead) <= _MOST_DEATHS:
            self.processes.append(_Process(self._job, self._journals))
        lost = process.lost()
        self._require_journals()
        return lost

    def _require_journals(self) -> None:
        """All processes have a journal, or none: no note may be older than what a process without one did."""
        if self._journals is not None and any(one.journal is None for one in self.processes):
            self._journals = None
            self.all_recorded()
            for process in (*self.processes, *self._dead):
                process.journal = None

    def close(self) -> None:
        for process in self.processes:
            process.close()

    def all_recorded(self) -> None:
        for process in (*self.processes, *self._dead):
            if process.journal is not None:
                process.journal.forget()


def _unknown(message_ids: Sequence[str], how: str) -> Answer:
    deliveries = [Delivery(message_id, Status.UNKNOWN, reply=how) for message_id in message_ids]
    return Answer(deliveries, [""] * len(deliveries))


def settle_process() -> None:
    """Make a process ready for windows of large messages: keep its memory, and look for garbage rarely."""
    keep_heap()
    # templates and libraries live as long as this process; what a message leaves behind is freed by counting references
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


def _serve(pipe: Connection, parent: int) -> None:
    """Work on windows until the pipe closes."""
    settle_process()
    job: _Job = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from the process that started this one
    journal = None
    if job.journal is not None:
        # gone if another process got none, see `Processes`
        with contextlib.suppress(OSError):
            journal = Journal(job.journal, job.rows)
    with job.make_provider() as provider:
        worker = Worker(job.plan, job.envelope, job.template, provider, clock_offset=job.clock_offset)
        while True:
            slot, message_ids, packed = pickle.loads(pipe.recv_bytes())  # noqa: S301
            if os.getppid() != parent:
                return
            try:
                marks = None if journal is None else journal.marks(slot, message_ids)
                answer = worker.work(Window([], message_ids, Rows.unpacked(packed)), marks)
            except Exception:  # noqa: BLE001  (the coordinator records the window, then stops)
                answer = _unknown(message_ids, "a defect of the sending process")
                answer.defect = traceback.format_exc()
            pipe.send_bytes(answer.packed())


def main() -> None:
    """A worker process: windows come through the pipe whose descriptor is given; the second argument is its parent."""
    pipe, parent = int(sys.argv[1]), int(sys.argv[2])
    # whoever stops the coordinator with Ctrl-C stops us through it, after the window at hand
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # but if it is killed, so are we: the next run takes for settled what no living process can still send
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(pipe), parent)


if __name__ == "__main__":
    # under its own name, so that what is pickled here is known there
    from senders import workers

    workers.main()
