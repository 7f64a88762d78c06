"""Render messages and hand them to the provider: in this process, or in several that do nothing else.

The coordinator (`senders.pipeline`) owns the ledger. It gives out windows of messages that the ledger has let go, and
takes back what became of each. A worker process does not outlive the coordinator; of a worker that dies, the windows it
held are of unknown outcome.
"""

from __future__ import annotations

import contextlib
import ctypes
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Self

from senders import mime
from senders.message import Address, Delivery, Message, Reason, RejectReason, Status
from senders.providers.base import ADDRESS_COLUMNS, Provider, ProviderError, ProviderRefusedError
from senders.rendering import RenderError, Template, TemplateLibrary
from senders.settings import SenderSettings
from senders.unsubscribe import preferences_url, unsubscribe_url
from warehouse.errors import MailhouseError
from warehouse.settings import PROJECT_ROOT

if TYPE_CHECKING:
    import polars as pl

    from senders.pipeline import SendPlan

#: Columns of an audience that are not the contact's profile.
NOT_PROFILE = frozenset(
    {
        "skip_reason",
        "consent_id",
        "suppression_event_id",
        "recommendations",
        "recommendation_version",
        "variant",
    }
)
#: Windows that a worker is given at once: one at hand, one to go on with.
_AHEAD = 2
_MOST_DEATHS = 3
_PR_SET_PDEATHSIG = 1


class WorkerError(MailhouseError):
    """Worker processes die or do not start."""


@dataclass(frozen=True, slots=True)
class Window:
    """Messages that go out together.

    Attributes:
        row_ids: rows of the ledger.
        message_ids: of the same messages.
        rows: of the audience, in that order.
        tries: how often they have been handed over, this time included.
    """

    row_ids: Sequence[int]
    message_ids: Sequence[str]
    rows: pl.DataFrame
    tries: int = 1

    def only(self, positions: Sequence[int], *, tries: int | None = None) -> Window:
        """Some of the messages."""
        return Window(
            [self.row_ids[at] for at in positions],
            [self.message_ids[at] for at in positions],
            self.rows[list(positions)],
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


def render_context(
    plan: SendPlan,
    settings: SenderSettings,
    contact: Mapping[str, Any],
    recommendations: Sequence[Any],
    now: Any,
    *,
    variant: str = "",
    unsubscribe_url: str,
    preferences_url: str,
) -> dict[str, Any]:
    """What merge tags of a message may name; the same for a message that is sent and for a preview of it."""
    return {
        "contact": contact,
        "recommendations": recommendations,
        "campaign": {
            "kind": plan.kind, "name": plan.name, "version": plan.version,
            "occurrence": plan.occurrence, "category": plan.category, "variant": variant,
        },
        "unsubscribe_url": unsubscribe_url,
        "preferences_url": preferences_url,
        "postal_address": settings.postal_address,
        "company_name": settings.company_name,
        "now": now,
    }  # fmt: skip


class Worker:
    """Renders windows and hands them over."""

    def __init__(
        self, plan: SendPlan, settings: SenderSettings, template: Template, provider: Provider
    ) -> None:
        self.plan, self.settings, self.template, self.provider = plan, settings, template, provider
        self.key = settings.signing_key()
        self.sender = Address(
            plan.from_email or settings.from_email, mime.one_line(plan.from_name or settings.from_name)
        )
        self.reply_to = Address(plan.reply_to) if plan.reply_to else None
        self.address_column = ADDRESS_COLUMNS.get(plan.channel, "")
        label = "".join(c if c.isalnum() and c.isascii() else "-" for c in plan.name).strip("-")
        domain = mime.ascii_domain(self.sender.email.rpartition("@")[2])
        self._list_id = f"<{label}.{domain}>"
        self._feedback_id = f"{label}:{plan.category}:{plan.kind}:mailhouse"

    def work(self, window: Window) -> Answer:
        """Render a window and hand over what could be rendered."""
        answer = Answer()
        messages: list[Message] = []
        places: list[int] = []
        for place, made in enumerate(self._messages(window)):
            if isinstance(made, Message):
                messages.append(made)
                places.append(place)
                answer.subjects.append(made.subject)
            else:
                answer.deliveries.append(made)
                answer.subjects.append("")
        if messages:
            try:
                found = {
                    delivery.message_id: delivery
                    for delivery in (*self.provider.send(messages), *answer.deliveries)
                }
            except ProviderError as error:
                return Answer(error=error)
        else:
            found = {delivery.message_id: delivery for delivery in answer.deliveries}
        answer.deliveries = [
            found.get(message_id) or Delivery(message_id, Status.UNKNOWN, reply="the provider gave no answer")
            for message_id in window.message_ids
        ]
        return answer

    def _messages(self, window: Window) -> list[Message | Delivery]:
        """A message for each row, or why there is none."""
        now = self.settings.now()
        frame = window.rows
        columns = [name for name in frame.columns if name not in NOT_PROFILE]
        if self.template.columns is not None:
            always = {"contact_id", "email", "first_name", "last_name", self.address_column}
            always |= self.template.columns
            columns = [name for name in columns if name in always]
        recommendations = (
            frame["recommendations"].to_list() if "recommendations" in frame.columns else [[]] * frame.height
        )
        made: list[Message | Delivery] = []
        for contact, items, variant, message_id in zip(
            frame.select(columns).iter_rows(named=True),
            recommendations,
            texts(frame, "variant"),
            window.message_ids,
            strict=True,
        ):
            try:
                message = self._message(contact, items or [], variant, message_id, now)
                if self.provider.capabilities.wants_raw:
                    # made here, so that what cannot be written is known before the provider is called
                    _ = message.raw
                made.append(message)
            except RenderError as error:
                made.append(Delivery(message_id, Status.FAILED, Reason.NOT_RENDERED, reply=str(error)))
            except ValueError as error:
                made.append(Delivery(message_id, Status.INVALID, RejectReason.INVALID, reply=str(error)))
        return made

    def _message(
        self, contact: dict[str, Any], items: list[Any], variant: str, message_id: str, now: Any
    ) -> Message:
        plan, settings = self.plan, self.settings
        url = unsubscribe_url(settings.base_url, message_id, self.key)
        rendered = self.template.render(
            render_context(
                plan, settings, contact, items, now, variant=variant, unsubscribe_url=url,
                preferences_url=preferences_url(settings.base_url, message_id, self.key),
            )
        )  # fmt: skip
        headers: tuple[tuple[str, str], ...] = ()
        if plan.category == "marketing":
            headers = (
                ("List-Unsubscribe", f"<{url}>"),
                ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
                ("List-Id", self._list_id),
                ("Feedback-ID", self._feedback_id),
            )
        names = (contact.get("first_name"), contact.get("last_name"))
        return Message(
            message_id=message_id,
            contact_id=contact["contact_id"],
            sender=self.sender,
            recipient=Address(contact["email"], mime.one_line(" ".join(str(name) for name in names if name))),
            subject=rendered.subject,
            html=rendered.html,
            text=rendered.text,
            sent_at=now.replace(microsecond=0),
            reply_to=self.reply_to,
            headers=headers,
            address=str(contact.get(self.address_column) or "") if self.address_column else "",
            deliver_at=now + plan.hold if plan.hold else None,
            is_tracked=plan.is_tracked,
        )


def texts(frame: pl.DataFrame, name: str) -> list[str]:
    """A text column without NULLs; all empty if the frame does not have it."""
    import polars as pl

    if name not in frame.columns:
        return [""] * frame.height
    return frame[name].cast(pl.String).fill_null("").to_list()


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
    def give(self, window: Window) -> None:
        """Hand a window over; one at most while `is_free` is false."""

    @abstractmethod
    def answers(self, *, wait: bool) -> list[tuple[Window, Answer]]:
        """Windows that are done.

        Args:
            wait: until there is one, if any is under way.
        """

    def close(self) -> None:  # noqa: B027  (nothing to end in this process)
        """End the processes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class InProcess(Workers):
    """This process, one window at a time."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._done: list[tuple[Window, Answer]] = []

    @property
    def is_free(self) -> bool:
        return not self._done

    @property
    def is_busy(self) -> bool:
        return bool(self._done)

    def give(self, window: Window) -> None:
        self._done.append((window, self._worker.work(window)))

    def answers(self, *, wait: bool) -> list[tuple[Window, Answer]]:
        del wait
        done, self._done = self._done, []
        return done


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker process must know."""

    plan: SendPlan
    settings: SenderSettings
    provider: str
    contact_columns: tuple[str, ...]
    template_version: str


class _Process:
    """One worker process and the windows it holds, oldest first."""

    def __init__(self, job: _Job) -> None:
        self.pipe, far = multiprocessing.Pipe()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "senders.workers", str(far.fileno()), str(os.getpid())],
                pass_fds=(far.fileno(),),
                cwd=PROJECT_ROOT,
                stdin=subprocess.DEVNULL,
            )
        finally:
            far.close()
        self.held: deque[Window] = deque()
        self.pipe.send_bytes(pickle.dumps(job))

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
        contact_columns: profile columns that templates may name.

    Raises:
        WorkerError: they die one after the other.
    """

    def __init__(
        self,
        count: int,
        plan: SendPlan,
        settings: SenderSettings,
        provider: str,
        contact_columns: Sequence[str],
        template_version: str,
    ) -> None:
        share = max(1, settings.smtp_connections // count)
        own = settings.model_copy(update={"smtp_connections": share})
        self._job = _Job(plan, own, provider, tuple(contact_columns), template_version)
        self.processes = [_Process(self._job) for _ in range(count)]
        self._deaths = 0

    @property
    def is_free(self) -> bool:
        return not self.processes or any(len(one.held) < _AHEAD for one in self.processes)

    @property
    def is_busy(self) -> bool:
        return any(one.held for one in self.processes)

    def give(self, window: Window) -> None:
        if not self.processes:
            raise WorkerError(
                f"{self._deaths} sending processes died one after the other.",
                fix="Look into the system's log (memory?), then send again; it goes on where it stopped.",
            )
        process = min(self.processes, key=lambda one: len(one.held))
        process.held.append(window)
        # if it has died, the answer says so
        with contextlib.suppress(OSError):
            process.pipe.send_bytes(pickle.dumps((window.message_ids, window.rows)))

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
                done.append((process.held.popleft(), pickle.loads(received)))  # noqa: S301 - our own process
        return done

    def _died(self, process: _Process) -> list[tuple[Window, Answer]]:
        """Its windows, of unknown outcome; another process takes its place."""
        self.processes.remove(process)
        process.close()
        self._deaths += 1
        if self._deaths <= _MOST_DEATHS:
            self.processes.append(_Process(self._job))
        how = f"the sending process ended with code {process.process.returncode}"
        return [(window, _unknown(window.message_ids, how)) for window in process.held]

    def close(self) -> None:
        for process in self.processes:
            process.close()


def _unknown(message_ids: Sequence[str], how: str) -> Answer:
    deliveries = [Delivery(message_id, Status.UNKNOWN, reply=how) for message_id in message_ids]
    return Answer(deliveries, [""] * len(deliveries))


def _serve(pipe: Connection, parent: int) -> None:
    """Work on windows until the pipe closes."""
    from senders.providers import get_provider

    job: _Job = pickle.loads(pipe.recv_bytes())  # noqa: S301 - from the process that started this one
    plan = job.plan
    templates = TemplateLibrary.load(job.settings.content_dir / "templates", job.contact_columns)
    template = templates.template(
        plan.template, subject=plan.subject, preheader=plan.preheader, place=plan.place
    )
    with get_provider(job.settings, job.provider) as provider:
        worker = Worker(plan, job.settings, template, provider)
        while True:
            message_ids, rows = pickle.loads(pipe.recv_bytes())  # noqa: S301
            if os.getppid() != parent:
                return
            try:
                if template.version != job.template_version:
                    raise WorkerError(
                        f"Template {plan.template} was changed while it was being sent.", fix="Send again."
                    )
                answer = worker.work(Window([], message_ids, rows))
            except WorkerError as error:
                answer = Answer(error=ProviderRefusedError(error.message, fix=error.fix))
            except Exception:  # noqa: BLE001  (the coordinator records the window, then stops)
                answer = _unknown(message_ids, "a defect of the sending process")
                answer.defect = traceback.format_exc()
            pipe.send_bytes(pickle.dumps(answer))


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
