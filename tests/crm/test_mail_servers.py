"""Whether domains take mail, asked of a name server of our own."""

from __future__ import annotations

import socketserver
import threading
from collections import Counter

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from crm.mail_servers import mail_server_problems

RECORDS = {
    ("mail.com.", "MX"): "10 mx.mail.com.",
    ("old.com.", "A"): "192.0.2.1",
    ("deaf.com.", "MX"): "0 .",
    ("web.com.", "TXT"): '"no mail"',
}
asked: Counter[str] = Counter()


class NameServer(socketserver.BaseRequestHandler):
    """Answers from `RECORDS`; refuses `broken.com`."""

    def handle(self) -> None:
        data, socket = self.request
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(), question.rdtype.name
        asked[f"{name} {kind}"] += 1
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if name == "broken.com.":
            answer.set_rcode(dns.rcode.REFUSED)
        elif (name, kind) in RECORDS:
            answer.answer.append(dns.rrset.from_text(name, 60, "IN", kind, RECORDS[name, kind]))
        elif name not in {known for known, _ in RECORDS}:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        socket.sendto(answer.to_wire(), self.client_address)


def test_domains_that_take_no_mail_are_named_and_asked_for_once() -> None:
    domains = ["mail.com", "old.com", "deaf.com", "web.com", "nowhere.com", "broken.com"]
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), NameServer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        problems = mail_server_problems(["127.0.0.1"], port=server.server_address[1], seconds=2)
        found = problems(domains)
        assert problems(domains) == found
        server.shutdown()
    # a domain without MX takes mail at its address; of one whose servers refuse nobody can tell
    assert found == {
        "deaf.com": "the domain takes no mail, as it says itself",
        "web.com": "the domain has no mail server",
        "nowhere.com": "there is no such domain",
    }
    assert asked["mail.com. MX"] == asked["nowhere.com. MX"] == 1
