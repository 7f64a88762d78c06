"""All checks of a message, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from campaigns.checks import CheckResult
from deliverability.links import Unwrap, check_links, references_of, url_problem
from deliverability.reachability import reach
from deliverability.samples import Sample, one_a_locale
from deliverability.sender_dns import Lookup, Selector, check_sender, txt_lookup
from deliverability.size import check_size
from deliverability.spamd import Spamd, check_spam
from deliverability.support import check_support

#: Checks by name, with what each is about.
CHECKS: Mapping[str, str] = {
    "size": "Gmail shows the message whole.",
    "links": "Links and images have addresses that work for who gets it, and images have a text.",
    "sender_dns": "Receivers can authenticate mail in the name of the sender's domain (SPF, DKIM, DMARC).",
    "spam_score": "SpamAssassin gives the message few points.",
    "client_support": "Mail programs that many use show what the message has. Only a warning.",
}
#: Those that warn and block nothing.
WARNINGS = frozenset({"client_support"})


@dataclass(frozen=True)
class Surroundings:
    """What the checks must know that the message does not say.

    Attributes:
        reaches_people: the provider delivers to people; otherwise this is a rehearsal.
        uses_network: links may be asked for and DNS may be looked up.
        unwrap: for an address of a tracked link where it leads to; None for any other.
        sender: whose domain is looked up in DNS, if the network is used and people are reached.
        spamd, spam_limit: who is asked whether it is spam, and points at which it is; None: nobody.
        is_own: whether an address is the gateway's, which is never asked for: it would count a click.
    """

    reaches_people: bool
    uses_network: bool = False
    unwrap: Unwrap = lambda _: None
    is_own: Callable[[str], bool] = lambda _: False
    sender: Sender | None = None
    spamd: Spamd | None = None
    spam_limit: float = 5.0


@dataclass(frozen=True)
class Sender:
    """In whose name mail is sent; see `sender_dns.check_sender`."""

    domain: str
    selectors: tuple[Selector, ...] = ()
    dkim_domain: str = ""
    envelope_domain: str = ""


def preflight(
    samples: Sequence[Sample], surroundings: Surroundings, *, lookup: Lookup | None = None
) -> list[CheckResult]:
    """Judge a message by samples of it, one result for each of `CHECKS`.

    Args:
        samples: at least one.
        lookup: asks DNS; left out, the system's name servers.
    """
    is_rehearsal = not surroundings.reaches_people
    reached = None
    if surroundings.uses_network:
        reached = reach(
            one.url
            for one in references_of(samples, surroundings.unwrap)
            if not surroundings.is_own(one.url) and not url_problem(one, is_rehearsal=False)
        )
    chosen = one_a_locale(samples)
    return [
        check_size(samples),
        check_links(samples, is_rehearsal=is_rehearsal, unwrap=surroundings.unwrap, reached=reached),
        _judge_sender(surroundings, lookup),
        _judge_spam(chosen, surroundings),
        check_support(chosen),
    ]


def _judge_spam(samples: Sequence[Sample], surroundings: Surroundings) -> CheckResult:
    if surroundings.spamd is None:
        return CheckResult("spam_score", True, "Not judged: MAILHOUSE_SPAMD_URL is not set.")
    return check_spam(samples, surroundings.spamd.score, limit=surroundings.spam_limit)


def _judge_sender(surroundings: Surroundings, lookup: Lookup | None) -> CheckResult:
    sender = surroundings.sender
    if not surroundings.reaches_people or sender is None:
        return CheckResult("sender_dns", True, "Not judged: the provider does not deliver to people.")
    if not surroundings.uses_network:
        return CheckResult("sender_dns", True, "Not judged: MAILHOUSE_PREFLIGHT_NETWORK is off.")
    return check_sender(
        sender.domain,
        lookup or txt_lookup(),
        selectors=sender.selectors,
        dkim_domain=sender.dkim_domain,
        envelope_domain=sender.envelope_domain,
    )


def not_judged(why: str, *, is_passed: bool) -> list[CheckResult]:
    """The same results where there is no message to judge.

    Args:
        is_passed: another check says already what is wrong.
    """
    return [
        CheckResult(
            name, is_passed or name in WARNINGS, f"Not judged: {why}", is_blocking=name not in WARNINGS
        )
        for name in CHECKS
    ]
