"""Whether domains take mail, asked of DNS: RFC 5321, section 5.1, and RFC 7505."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import dns.exception
import dns.resolver

_AT_ONCE = 64


def mail_server_problems(
    nameservers: Iterable[str] = (), *, port: int = 53, seconds: float = 5.0
) -> Callable[[Iterable[str]], dict[str, str]]:
    """A function from domains to what is wrong with those that take no mail; each is asked for once.

    A domain takes mail if it has an MX record, or, without any, an address. One whose servers do not answer may
    take mail, and nothing is said of it.

    Args:
        nameservers: addresses; left out, those of the system.
        port: theirs.
        seconds: limit for each question.
    """
    given = list(nameservers)
    resolver = dns.resolver.Resolver(configure=not given)
    if given:
        resolver.nameservers = given
        resolver.port = port
    resolver.lifetime = seconds
    known: dict[str, str] = {}

    def problem(domain: str) -> str:
        name = f"{domain}."
        try:
            servers = [str(row.exchange) for row in resolver.resolve(name, "MX", search=False)]
        except dns.resolver.NXDOMAIN:
            return "there is no such domain"
        except dns.resolver.NoAnswer:
            return "" if has_address(name) else "the domain has no mail server"
        except dns.exception.DNSException:
            return ""
        return "the domain takes no mail, as it says itself" if servers == ["."] else ""

    def has_address(name: str) -> bool:
        for kind in ("A", "AAAA"):
            try:
                resolver.resolve(name, kind, search=False)
            except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
                continue
            except dns.exception.DNSException:
                return True
            return True
        return False

    def problems(domains: Iterable[str]) -> dict[str, str]:
        wanted = list(domains)
        fresh = [domain for domain in wanted if domain not in known]
        if fresh:
            with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
                known.update(zip(fresh, pool.map(problem, fresh), strict=True))
        return {domain: known[domain] for domain in wanted if known[domain]}

    return problems
