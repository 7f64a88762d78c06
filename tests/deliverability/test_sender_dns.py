"""SPF, DKIM and DMARC as a name server on the loopback interface answers."""

from __future__ import annotations

import base64
import socketserver
import threading
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from deliverability.preflight import Sender, Surroundings, preflight
from deliverability.samples import Sample
from deliverability.sender_dns import (
    DnsError,
    Selector,
    check_sender,
    read_dkim,
    read_dmarc,
    read_spf,
    txt_lookup,
)


def rsa_key(bits: int) -> str:
    public = rsa.generate_private_key(65537, bits).public_key()
    return base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


RSA = rsa_key(2048)
ED = base64.b64encode(ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
GOOD = {
    "shop.com": ["google-site-verification=x", "v=spf1 mx include:spf.relay.net ~all"],
    "spf.relay.net": ["v=spf1 ip4:192.0.2.0/24 -all"],
    "s1._domainkey.shop.com": [f"v=DKIM1; k=rsa; p={RSA}"],
    "_dmarc.shop.com": ["v=DMARC1; p=reject; sp=quarantine"],
}


def zone(**changes: list[str]):
    """A look-up in the good zone with changes; `_dmarc__shop__com` names `_dmarc.shop.com`."""
    records = {**GOOD, **{name.replace("__", "."): texts for name, texts in changes.items()}}
    return lambda name: records.get(name, [])


class NameServer(socketserver.BaseRequestHandler):
    zone: dict[str, list[str]]

    def handle(self) -> None:
        data, socket = self.request
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        name = query.question[0].name.to_text(omit_final_dot=True)
        if name == "alias._domainkey.shop.com":
            answer.answer.append(
                dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", "s1._domainkey.shop.com.")
            )
            name = "s1._domainkey.shop.com"
        if name.startswith("broken."):
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif name not in self.zone:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        for text in self.zone.get(name, []):
            # a record of more than 255 bytes is several strings
            pieces = " ".join(f'"{text[at : at + 200]}"' for at in range(0, len(text), 200))
            answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "TXT", pieces))
        socket.sendto(answer.to_wire(), self.client_address)


@pytest.fixture
def lookup() -> Iterator:
    NameServer.zone = GOOD
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), NameServer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield txt_lookup(["127.0.0.1"], port=server.server_address[1], seconds=5.0)
        server.shutdown()
        thread.join()


def test_a_domain_in_order_over_the_wire(lookup) -> None:
    result = check_sender("shop.com", lookup, selectors=[Selector("s1", RSA)], envelope_domain="shop.com")
    assert result.is_passed and result.is_blocking
    assert result.message == (
        "SPF of shop.com is in order (2 of 10 look-ups); the DKIM key at s1._domainkey.shop.com is in order; "
        "DMARC of shop.com says p=reject; SPF and DKIM can pass for shop.com itself, as DMARC asks."
    )
    assert result.metadata["policy"] == "reject"


def test_a_key_behind_an_alias_and_a_name_that_is_not_there(lookup) -> None:
    assert read_dkim("shop.com", [Selector("alias")], lookup).is_good
    assert lookup("nothing.shop.com") == []


def test_a_server_that_fails_is_no_answer(lookup) -> None:
    with pytest.raises(DnsError, match=r"broken\.com"):
        lookup("broken.com")
    result = check_sender("broken.com", lookup)
    assert not result.is_passed
    assert result.message.startswith("Not judged: DNS does not answer for broken.com")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([], "has no SPF record"),
        (["v=spf1 mx -all", "v=spf1 a -all"], "has 2 SPF records"),
        (["v=spf1 mx +all"], "lets everybody"),
        (["v=spf1 -all"], "lets nobody"),
        (["v=spf1 mx everybody -all"], "'everybody' in the record of shop.com is no term"),
        (["v=spf1 include:nowhere.net -all"], "nowhere.net has no SPF record"),
        (["v=spf1 include:shop.com -all"], "includes itself"),
        (["v=spf1 include: -all"], "is no term"),
        (["v=spf1 include -all"], "says not which"),
        (["v=spf1 " + "a:x.com " * 11 + "-all"], "needs 11 look-ups"),
    ],
)
def test_spf_that_helps_nobody(record: list[str], says: str) -> None:
    found = read_spf("shop.com", zone(shop__com=record))
    assert not found.is_good
    assert says in found.text


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 redirect=spf.relay.net",
        "v=spf1 ip6:2001:db8::/32 a/24 mx:mail.shop.com/24//64 ?all",
        "v=spf1 exists:%{i}._spf.shop.com -all",
        "V=SPF1 include:spf.relay.net exp=why.shop.com -all",
        "v=spf1 " + "a:x.com " * 10 + "-all",
    ],
)
def test_spf_in_order(record: str) -> None:
    found = read_spf("shop.com", zone(shop__com=[record]))
    assert found.is_good, found.text


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "there is no DKIM key at s1._domainkey.shop.com"),
        (["v=DKIM1; p="], "revoked"),
        ([f"v=DKIM2; p={RSA}"], "of version 'DKIM2'"),
        ([f"k=rsa; h=sha1; p={RSA}"], "does not allow SHA-256"),
        ([f"s=other; p={RSA}"], "not for email"),
        (["p=AAAA"], "cannot be read"),
        (["p=not base64"], "cannot be read"),
        ([f"k=ed25519; p={RSA}"], "no Ed25519 key"),
        ([f"k=x25519; p={RSA}"], "unknown kind"),
        ([f"p={RSA}", f"p={ED}"], "2 DKIM keys"),
    ],
)
def test_dkim_that_cannot_pass(records: list[str], says: str) -> None:
    found = read_dkim("shop.com", [Selector("s1")], zone(s1___domainkey__shop__com=records))
    assert not found.is_good
    assert says in found.text


def test_dkim_in_order() -> None:
    key = f"v=DKIM1; k=rsa; t=y; p={RSA[:100]} {RSA[100:]}"
    found = read_dkim("shop.com", [Selector("s1", RSA)], zone(s1___domainkey__shop__com=[key]))
    assert found.is_good and "marked as a test" in found.text
    both = read_dkim(
        "shop.com",
        [Selector("s1"), Selector("s2", ED)],
        zone(s2___domainkey__shop__com=[f"k=ed25519; p={ED}"]),
    )
    assert both.is_good
    assert "s1._domainkey" in both.text and "s2._domainkey" in both.text


def test_a_key_that_is_not_ours_is_wrong() -> None:
    assert "not the one that signs" in read_dkim("shop.com", [Selector("s1", ED)], zone()).text


def test_a_short_key_is_wrong() -> None:
    # too short for this library to make, so it was made once with openssl
    short = (
        "MHwwDQYJKoZIhvcNAQEBBQADawAwaAJhAMyv8OJ8Qw1LtU07akkKgYL4VUzSHbsRlRqM2BYpJN8yzAdL"
        "Cc2FQ6v/hj4fA3G1hSvjK+ex6dv+J/f13MplxKW1CabmUDvTES+xQ3kKyAElvAg+fW06gualsaOeWQqnywIDAQAB"
    )
    found = read_dkim("shop.com", [Selector("s1")], zone(s1___domainkey__shop__com=[f"p={short}"]))
    assert not found.is_good and "has 768 bits" in found.text


@pytest.mark.parametrize(
    ("domain", "policy", "at"),
    [
        ("shop.com", "reject", "shop.com"),
        ("news.shop.com", "quarantine", "shop.com"),
        ("a.b.c.d.e.f.g.h.i.shop.com", "quarantine", "shop.com"),
    ],
)  # fmt: skip
def test_a_policy_holds_for_names_below(domain: str, policy: str, at: str) -> None:
    tags = read_dmarc(domain, zone()).tags
    assert tags is not None
    assert (tags["policy"], tags["domain"]) == (policy, at)


def test_no_policy_and_a_wrong_one() -> None:
    assert read_dmarc("shop.com", zone(_dmarc__shop__com=[])).state == "missing"
    assert read_dmarc("shop.com", zone(_dmarc__shop__com=["v=DMARC1; p=none"] * 2)).state == "missing"
    assert read_dmarc("shop.com", zone(_dmarc__shop__com=["v=DMARC1; p=refuse"])).state == "wrong"


def test_it_fails_if_neither_spf_nor_dkim_can_pass() -> None:
    result = check_sender("shop.com", zone(shop__com=[], _dmarc__shop__com=[]), envelope_domain="shop.com")
    assert not result.is_passed
    assert "authenticate mail from it in no way" in result.message
    assert "set MAILHOUSE_DKIM_SELECTOR" in result.message
    found = check_sender("shop.com", zone(shop__com=[], _dmarc__shop__com=[]), selectors=[Selector("s1")])
    assert found.is_passed
    assert "no DMARC record" in found.message


def test_it_fails_if_the_own_policy_rejects_what_is_not_aligned() -> None:
    # SPF is in order, but bounces come to the provider's domain
    result = check_sender("shop.com", zone())
    assert not result.is_passed
    assert "ts own policy has receivers reject the mail" in result.message
    for policy in ("none", "quarantine"):
        assert check_sender("shop.com", zone(_dmarc__shop__com=[f"v=DMARC1; p={policy}"])).is_passed


@pytest.mark.parametrize(("mode", "is_aligned"), [("r", True), ("s", False)])
def test_alignment_of_a_domain_above(mode: str, is_aligned: bool) -> None:
    result = check_sender(
        "news.shop.com",
        zone(_dmarc__shop__com=[f"v=DMARC1; p=reject; adkim={mode}"]),
        selectors=[Selector("s1")],
        dkim_domain="shop.com",
    )
    assert result.is_passed is is_aligned
    assert result.metadata["is_dkim_aligned"] == is_aligned


@pytest.mark.parametrize(("mode", "is_aligned"), [("r", True), ("s", False)])
def test_spf_is_that_of_the_return_path(mode: str, is_aligned: bool) -> None:
    records = zone(
        mail__shop__com=["v=spf1 a -all"],
        shop__com=[],
        _dmarc__shop__com=[f"v=DMARC1; p=reject; aspf={mode}"],
    )
    result = check_sender("shop.com", records, envelope_domain="mail.shop.com")
    assert result.metadata["spf"] == "good"
    assert result.is_passed is is_aligned


def test_a_signature_of_somebody_else_is_not_aligned() -> None:
    records = {"s1._domainkey.relay.net": [f"p={RSA}"], **GOOD}
    result = check_sender(
        "shop.com", lambda name: records.get(name, []), selectors=[Selector("s1")], dkim_domain="relay.net"
    )
    assert not result.is_passed and result.metadata["dkim"] == "good"


@given(st.lists(st.text(max_size=80), max_size=3))
def test_any_record_is_judged_without_an_error(records: list[str]) -> None:
    for prefix in ("", "v=spf1 ", "v=DMARC1; ", "v=DKIM1; p="):
        check_sender(
            "a.shop.com",
            lambda _, prefix=prefix: [prefix + one for one in records],
            selectors=[Selector("x")],
        )


def test_dns_is_asked_only_for_real_sends_with_the_network_on() -> None:
    samples = [Sample(b"Content-Type: text/html\r\n\r\n<p>hi</p>")]
    asked: list[str] = []

    def judge(**more):
        where = Surroundings(sender=Sender("shop.com", (Selector("s1"),)), **more)
        found = preflight(samples, where, lookup=lambda name: asked.append(name) or zone()(name))
        return next(one for one in found if one.name == "sender_dns")

    assert "does not deliver to people" in judge(reaches_people=False, uses_network=True).message
    assert "MAILHOUSE_PREFLIGHT_NETWORK" in judge(reaches_people=True).message
    assert asked == []
    assert judge(reaches_people=True, uses_network=True).is_passed
    assert "shop.com" in asked
