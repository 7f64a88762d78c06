"""What the sender's domain says in DNS about who may send in its name: SPF, DKIM and DMARC.

SPF after RFC 7208, DKIM records after RFC 6376 and 8463, DMARC's policy and alignment after RFC 7489, except that the
organisational domain is found by walking up the tree of names, as DMARC's second edition does, and not from a list.
No message is judged here, only whether one could pass.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import dns.exception
import dns.name
import dns.resolver
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from campaigns.checks import CheckResult
from warehouse.errors import MailhouseError

__all__ = [
    "DnsError",
    "Finding",
    "Selector",
    "check_sender",
    "read_dkim",
    "read_dmarc",
    "read_spf",
    "txt_lookup",
]

_NAME = "sender_dns"
#: A name -> its TXT records, [] if it has none; raises `DnsError` if nobody can tell.
Lookup = Callable[[str], Sequence[str]]

_SPF_LOOKUPS = 10
_MECHANISM = re.compile(
    r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?::([^/\s]+(?:/[^\s]*)?))?(?:/[0-9/]+)?", re.IGNORECASE
)
_MODIFIER = re.compile(r"([a-z][a-z0-9_.-]*)=(\S*)", re.IGNORECASE)
_SMALLEST_RSA = 1024
_WALK = 8


class DnsError(MailhouseError):
    """DNS gave no answer, neither yes nor no."""


@dataclass(frozen=True)
class Finding:
    """What one record says.

    Attributes:
        state: `good`, `missing`, `wrong`, or `unknown` where nobody said where to look.
        text: a clause for people.
        tags: of a DMARC record, names in small letters; `domain` is where it was found, `policy` what holds.
    """

    state: Literal["good", "missing", "wrong", "unknown"]
    text: str
    tags: Mapping[str, str] | None = None

    @property
    def is_good(self) -> bool:
        """Whether a message can pass by this record."""
        return self.state == "good"


@dataclass(frozen=True)
class Selector:
    """Where a DKIM key is published.

    Attributes:
        name: the record is at `<name>._domainkey.<domain>`.
        public: base64 of the public key that must be there; empty if the provider signs with a key of its own.
    """

    name: str
    public: str = ""


def txt_lookup(
    nameservers: Sequence[str] = (), *, port: int = 53, seconds: float = 10.0
) -> Callable[[str], list[str]]:
    """Ask DNS for TXT records, each name once.

    Args:
        nameservers: addresses; left out, those of the system.
        seconds: limit for each name, over all servers.
    """
    resolver = dns.resolver.Resolver(configure=not nameservers)
    if nameservers:
        resolver.nameservers = list(nameservers)
        resolver.port = port
    resolver.lifetime = seconds
    known: dict[str, list[str]] = {}

    def lookup(name: str) -> list[str]:
        if name not in known:
            try:
                answer = resolver.resolve(f"{name.rstrip('.')}.", "TXT", search=False)
                known[name] = [b"".join(row.strings).decode("utf-8", "replace") for row in answer]
            except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
                known[name] = []
            except dns.exception.DNSException as error:
                raise DnsError(
                    f"DNS does not answer for {name} ({type(error).__name__}).",
                    fix="Look whether this machine reaches its name servers and the domain's answer, and try again.",
                ) from None
        return known[name]

    return lookup


def read_spf(domain: str, lookup: Lookup) -> Finding:
    """Whether a domain has an SPF record that receivers can evaluate and that lets somebody send.

    Which servers send is not known here, so whether theirs are among the addresses is not judged.
    """
    records = _spf_records(domain, lookup)
    if not records:
        return Finding("missing", f"{domain} has no SPF record")
    try:
        lookups = _spf_cost(domain, lookup, ())
    except ValueError as error:
        return Finding("wrong", f"SPF of {domain} cannot be evaluated: {error}")
    if lookups > _SPF_LOOKUPS:
        return Finding(
            "wrong", f"SPF of {domain} needs {lookups} look-ups, and receivers stop after {_SPF_LOOKUPS}"
        )
    terms = [match for term in records[0].split()[1:] if (match := _MECHANISM.fullmatch(term))]
    if any(term[2].lower() == "all" and term[1] in ("", "+") for term in terms):
        return Finding(
            "wrong", f"SPF of {domain} lets everybody send (+all), so receivers trust it with nothing"
        )
    lets = any(term[1] in ("", "+") for term in terms) or "redirect=" in records[0].lower()
    if not lets:
        return Finding("wrong", f"SPF of {domain} lets nobody send")
    return Finding("good", f"SPF of {domain} is in order ({lookups} of {_SPF_LOOKUPS} look-ups)")


def _spf_records(domain: str, lookup: Lookup) -> list[str]:
    return [one for one in lookup(domain) if re.match(r"v=spf1( |$)", one, re.IGNORECASE)]


def _spf_cost(domain: str, lookup: Lookup, above: tuple[str, ...]) -> int:
    """Look-ups that evaluating costs, of included records too (RFC 7208 section 4.6.4).

    Raises:
        ValueError: a record is missing, occurs twice or does not parse; says which.
    """
    if domain.lower() in above:
        raise ValueError(f"{domain} includes itself")
    records = _spf_records(domain, lookup)
    if len(records) != 1:
        raise ValueError(f"{domain} has {len(records) or 'no'} SPF record{'s' * (len(records) != 1)}")
    cost, redirect, has_all = 0, "", False
    for term in records[0].split()[1:]:
        mechanism = _MECHANISM.fullmatch(term)
        modifier = _MODIFIER.fullmatch(term)
        if mechanism:
            name, value = mechanism[2].lower(), mechanism[3] or ""
            if name in ("include", "exists", "ip4", "ip6") and not value:
                raise ValueError(f"{term!r} in the record of {domain} says not which")
            has_all |= name == "all"
            cost += name in ("include", "a", "mx", "ptr", "exists")
            if name == "include":
                cost += _followed(value, lookup, (*above, domain.lower()), cost)
        elif modifier:
            if modifier[1].lower() == "redirect":
                redirect = modifier[2]
        else:
            raise ValueError(f"{term!r} in the record of {domain} is no term of SPF")
    if redirect and not has_all:
        cost += 1 + _followed(redirect, lookup, (*above, domain.lower()), cost)
    return cost


def _followed(name: str, lookup: Lookup, above: tuple[str, ...], cost: int) -> int:
    # a macro depends on the message; past the limit more makes no difference, and records that fan out would be many
    return 0 if "%" in name or cost > _SPF_LOOKUPS else _spf_cost(name.rstrip("."), lookup, above)


def read_dkim(domain: str, selectors: Sequence[Selector], lookup: Lookup) -> Finding:
    """Whether a key can be found under one selector at least, and is the one that signs."""
    if not selectors:
        return Finding(
            "unknown", "DKIM was not looked up: set MAILHOUSE_DKIM_SELECTOR to the selector that signs"
        )
    found = [_dkim_key(domain, selector, lookup) for selector in selectors]
    best = min(found, key=lambda one: ("good", "wrong", "missing", "unknown").index(one.state))
    return Finding(best.state, "; ".join(one.text for one in found))


def _dkim_key(domain: str, selector: Selector, lookup: Lookup) -> Finding:
    name = f"{selector.name}._domainkey.{domain}"
    records = [one for one in lookup(name) if "p=" in one]
    if not records:
        return Finding("missing", f"there is no DKIM key at {name}")
    if len(records) > 1:
        return Finding("wrong", f"there are {len(records)} DKIM keys at {name}, of which receivers take any")
    tags = _tags(records[0])
    public = re.sub(r"\s", "", tags.get("p", ""))
    problem = _key_problem(tags, public)
    if not problem and selector.public and public != selector.public:
        problem = "is not the one that signs here"
    if problem:
        return Finding("wrong", f"the DKIM key at {name} {problem}")
    is_test = "y" in tags.get("t", "").split(":")
    return Finding(
        "good", f"the DKIM key at {name} is in order" + (", but marked as a test (t=y)" if is_test else "")
    )


def _key_problem(tags: Mapping[str, str], public: str) -> str:
    if tags.get("v", "DKIM1") != "DKIM1":
        return f"is of version {tags['v']!r}"
    if not public:
        return "has been revoked (p= is empty)"
    if "h" in tags and "sha256" not in tags["h"].split(":"):
        return "does not allow SHA-256"
    if "s" in tags and not {"email", "*"} & set(tags["s"].split(":")):
        return "is not for email"
    kind = tags.get("k", "rsa")
    try:
        raw = base64.b64decode(public, validate=True)
        if kind == "ed25519":
            return "" if len(raw) == 32 else "is no Ed25519 key"
        if kind != "rsa":
            return f"is of the unknown kind {kind!r}"
        key = load_der_public_key(raw)
    except (binascii.Error, ValueError, UnsupportedAlgorithm):
        return "cannot be read"
    if not isinstance(key, RSAPublicKey):
        return "is no RSA key"
    return (
        ""
        if key.key_size >= _SMALLEST_RSA
        else f"has {key.key_size} bits, and receivers want {_SMALLEST_RSA}"
    )


def read_dmarc(domain: str, lookup: Lookup) -> Finding:
    """The DMARC policy that holds for a domain: its own record, or that of its organisational domain."""
    walked = _walk(domain, lookup)
    if not walked:
        return Finding("missing", f"{domain} has no DMARC record, which Gmail and Yahoo want of bulk senders")
    organisation = _organisation(domain, walked)
    at = domain if domain in walked else organisation if organisation in walked else next(iter(walked))
    tags = walked[at]
    policy = tags.get("p", "none").lower()
    if at != domain:
        policy = tags.get("sp", policy).lower()
    if policy not in ("none", "quarantine", "reject"):
        return Finding("wrong", f"DMARC of {at} has the policy {policy!r}, which is none")
    return Finding(
        "good",
        f"DMARC of {at} says p={policy}",
        {**tags, "policy": policy, "domain": at},
    )


def _walk(domain: str, lookup: Lookup) -> dict[str, dict[str, str]]:
    """DMARC records of a domain and those above it, nearest first; eight look-ups at most."""
    labels = domain.split(".")
    starts = list(range(len(labels)))
    if len(starts) > _WALK:
        starts = [0, *starts[-(_WALK - 1) :]]
    found: dict[str, dict[str, str]] = {}
    for start in starts:
        name = ".".join(labels[start:])
        records = [
            one for one in lookup(f"_dmarc.{name}") if re.match(r"v\s*=\s*DMARC1\s*(;|$)", one, re.IGNORECASE)
        ]
        if len(records) == 1:
            found[name] = _tags(records[0])
            if found[name].get("psd", "").lower() in ("y", "n"):
                break
    return found


def _organisation(domain: str, walked: Mapping[str, Mapping[str, str]]) -> str:
    """The organisational domain: where alignment is decided."""
    for name, tags in walked.items():
        if tags.get("psd", "").lower() == "n":
            return name
        if tags.get("psd", "").lower() == "y" and name != domain:
            labels = domain.split(".")
            return ".".join(labels[-(name.count(".") + 2) :])
    return list(walked)[-1] if walked else domain


def _tags(record: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    for part in record.split(";"):
        name, mark, value = part.partition("=")
        if mark:
            tags.setdefault(name.strip().lower(), value.strip())
    return tags


def check_sender(
    domain: str,
    lookup: Lookup,
    *,
    selectors: Sequence[Selector] = (),
    dkim_domain: str = "",
    envelope_domain: str = "",
) -> CheckResult:
    """`sender_dns`: receivers can authenticate mail in the name of the sender's domain, and its own policy lets it in.

    It fails if neither SPF nor DKIM can pass, or if DMARC says `reject` and neither passes for the sender's own domain.

    Args:
        domain: that of the From address, in ASCII.
        selectors: where DKIM keys are.
        dkim_domain: what signatures name as their domain; empty means `domain`.
        envelope_domain: that of the envelope sender, which SPF is about; empty if the provider uses one of its own.
    """
    domain, dkim_domain = domain.lower().rstrip("."), (dkim_domain or domain).lower().rstrip(".")
    envelope_domain = envelope_domain.lower().rstrip(".")
    try:
        spf = read_spf(envelope_domain or domain, lookup)
        dkim = read_dkim(dkim_domain, selectors, lookup)
        dmarc = read_dmarc(domain, lookup)
        tags = dmarc.tags or {}
        spf_aligned = spf.is_good and _is_aligned(domain, envelope_domain, tags.get("aspf", "r"), lookup)
        dkim_aligned = dkim.is_good and _is_aligned(domain, dkim_domain, tags.get("adkim", "r"), lookup)
    except DnsError as error:
        return CheckResult(_NAME, False, f"Not judged: {error.message} {error.fix}", {"domain": domain})
    if spf_aligned or dkim_aligned:
        by = " and ".join(name for name, is_so in (("SPF", spf_aligned), ("DKIM", dkim_aligned)) if is_so)
        alignment = f"{by} can pass for {domain} itself, as DMARC asks"
    else:
        alignment = f"neither SPF nor DKIM is known to pass for {domain} itself, as DMARC asks"
    policy = tags.get("policy", "")
    problems: list[str] = []
    if not spf.is_good and not dkim.is_good:
        problems.append("receivers can authenticate mail from it in no way")
    elif policy == "reject" and not (spf_aligned or dkim_aligned):
        problems.append("its own policy has receivers reject the mail")
    said = [*problems, spf.text, dkim.text, dmarc.text, alignment]
    message = "; ".join(said)
    return CheckResult(
        _NAME,
        not problems,
        f"{message[0].upper()}{message[1:]}.",
        {
            "domain": domain, "spf": spf.state, "dkim": dkim.state, "dmarc": dmarc.state,
            "policy": policy or "no record", "is_spf_aligned": int(spf_aligned), "is_dkim_aligned": int(dkim_aligned),
        },
    )  # fmt: skip


def _is_aligned(domain: str, other: str, mode: str, lookup: Lookup) -> bool:
    """Whether what another domain passed counts for this one: the same, or if relaxed, of the same organisation."""
    if not other or domain == other:
        return bool(other)
    return mode.lower() != "s" and _organisation(domain, _walk(domain, lookup)) == _organisation(
        other, _walk(other, lookup)
    )
