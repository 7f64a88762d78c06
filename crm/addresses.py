"""Mail addresses of many people at once: what is none, what is nobody's, what is misspelt and what was probably meant.

`AddressJudge.judge` works on whole columns; what a domain is gets worked out once for each distinct domain. Syntax is
that of RFC 5321 as it is used (a dot-atom of RFC 5322 before the @, a host name of two or more labels behind it), with
letters of all languages before the @ (RFC 6531); what a domain is, `warehouse.addresses` says.

Role accounts are those of RFC 2142 and what firms call theirs. Disposable domains are those of the package
`disposable-email-domains` (CC0), a domain below one of them, too. A slip is one letter too many, too few, wrong or
swapped in the name of a large provider, the first letter aside, or a top level domain that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

import polars as pl

from warehouse.addresses import LONGEST, LONGEST_LOCAL, SPACES, mail_domain

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\p{L}\p{M}\p{N}]+"
_LOCAL = rf"^{_ATOM}(\.{_ATOM})*$"
_KNOWN_DOMAINS = 200_000

SPECIAL_TOPS: Final = frozenset(
    {"invalid", "localhost", "local", "test", "example", "onion", "internal", "lan"}
)
"""Top level domains in which no mailbox of the internet is (RFC 6761, RFC 6762, RFC 7686)."""

UNATTENDED: Final = frozenset(
    {
        "noreply", "no-reply", "no_reply", "no.reply", "donotreply", "do-not-reply", "do_not_reply", "do.not.reply",
        "dontreply", "nepasrepondre", "ne-pas-repondre", "nichtantworten", "mailer-daemon", "bounce", "bounces",
        "nobody",
        "devnull", "null",
    }
)  # fmt: skip
"""Before the @ of mailboxes that nobody reads: refused always."""

ROLES: Final = frozenset(
    {
        # RFC 2142
        "info", "marketing", "sales", "support", "abuse", "noc", "security", "postmaster", "hostmaster", "usenet",
        "news",
        "webmaster", "www", "uucp", "ftp",
        # offices
        "admin", "administrator", "root", "sysadmin", "it", "edv", "office", "contact", "contacts", "contactus",
        "hello", "hi",
        "mail", "email", "team", "staff", "all", "everyone", "reception", "secretary", "enquiries", "inquiries",
        "enquiry",
        "feedback", "help", "helpdesk", "service", "customerservice", "customer.service", "customer-service",
        "customercare",
        "billing", "invoice", "invoices", "accounts", "accounting", "accountspayable", "finance", "payments",
        "orders", "order",
        "shop", "store", "returns", "shipping", "purchasing", "procurement", "booking", "bookings", "reservations",
        "press", "media", "pr", "jobs", "job", "careers", "career", "recruiting", "recruitment", "hr", "legal",
        "privacy",
        "gdpr", "dpo", "compliance", "spam", "subscribe", "unsubscribe", "newsletter", "list", "webadmin", "tech",
        "dev",
        # German
        "kontakt", "buero", "büro", "verkauf", "vertrieb", "einkauf", "bestellung", "bestellungen", "rechnung",
        "rechnungen", "buchhaltung", "personal", "bewerbung", "zentrale", "empfang", "kundenservice", "datenschutz",
        "redaktion", "presse", "anfrage", "post", "poststelle", "sekretariat", "verwaltung", "geschaeftsleitung",
        # French, Spanish, Italian, Portuguese, Dutch, Polish
        "accueil", "bonjour", "commande", "commandes", "comptabilite", "facturation", "direction", "secretariat",
        "ventes",
        "contacto", "ventas", "compras", "pedidos", "facturacion", "administracion", "soporte", "empleo", "hola",
        "contatti", "amministrazione", "ordini", "vendite", "acquisti", "segreteria", "assistenza",
        "contato", "vendas", "financeiro", "atendimento", "administratie", "verkoop", "inkoop", "klantenservice",
        "biuro", "sekretariat.biuro", "sprzedaz", "ksiegowosc",
    }
)  # fmt: skip
"""Before the @ of mailboxes that belong to an office and not to a person."""

PROVIDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "gmail": ("com",),
    "googlemail": ("com",),
    "hotmail": (
        "com", "co.uk", "fr", "de", "it", "es", "be", "nl", "se", "no", "dk", "ch", "ca", "com.br", "com.ar",
        "com.tr", "gr",
    ),
    "outlook": (
        "com", "de", "fr", "es", "it", "at", "be", "cl", "cz", "dk", "hu", "ie", "jp", "kr", "lv", "pt", "sa",
        "sg", "sk",
        "co.id", "co.il", "co.th", "co.uk", "com.ar", "com.au", "com.br", "com.gr", "com.tr", "com.vn", "in",
        "my", "ph",
    ),
    "yahoo": (
        "com", "co.uk", "fr", "de", "es", "it", "ca", "ie", "in", "se", "no", "dk", "nl", "be", "pl", "gr", "ro",
        "co.in",
        "co.jp", "co.id", "co.kr", "co.nz", "co.th", "co.za", "com.ar", "com.au", "com.br", "com.hk", "com.mx",
        "com.my",
        "com.ph", "com.sg", "com.tr", "com.tw", "com.vn", "cn",
    ),
    "icloud": ("com",),
    "protonmail": ("com", "ch"),
    "rocketmail": ("com",),
    "rediffmail": ("com",),
    "wanadoo": ("fr",),
    "laposte": ("net",),
    "btinternet": ("com",),
    "comcast": ("net",),
    "bigpond": ("com", "net.au"),
}  # fmt: skip
"""Providers whose names are long enough that one letter beside them is a slip, and where they have mailboxes."""

_SHORT = {"aol": "com", "msn": "com"}
_REAL = frozenset({"gail", "gmai", "yahoos", "outlooks", "comcasts", "hotmails"})
_TOP_SLIPS = {
    "con": "com", "cmo": "com", "ocm": "com", "comm": "com", "coom": "com", "ccom": "com", "cim": "com", "cpm": "com",
    "vom": "com", "xom": "com", "nte": "net", "ent": "net", "nett": "net", "ogr": "org", "rog": "org", "orgg": "org",
    "gro": "org",
}  # fmt: skip
# real top level domains, which one may mean except behind the name of a provider that has no mailboxes there
_COM_SLIPS = frozenset({"co", "cm", "om", "comn", "come", "cam"})
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"

Policy = Literal["keep", "refuse"]
Problems = Callable[[Iterable[str]], Mapping[str, str]]
"""Domains -> what is wrong with those that take no mail; see `crm.mail_servers`."""

VERDICT: Final = {
    "email": pl.String(),
    "code": pl.String(),
    "said": pl.String(),
    "suggestion": pl.String(),
    "is_role": pl.Boolean(),
    "is_corrected": pl.Boolean(),
}
"""Columns of a verdict: the address as it is stored; why there is none, as a word and in words; what may have been
meant; whether it belongs to an office; whether the suggestion was taken. Where address and code lack, the cell was
empty."""


@dataclass(frozen=True)
class Domain:
    """What is known of a domain.

    Attributes:
        name: as DNS has it, in small letters and A-labels; empty if it is no domain.
        said: what is wrong with it, empty if nothing is.
        meant: the domain that it is a slip of, empty if it is none.
        is_disposable: whether its mailboxes are thrown away after use.
    """

    name: str
    said: str = ""
    meant: str = ""
    is_disposable: bool = False


def judge_domain(text: str) -> Domain:
    """What a domain is, as somebody wrote it in small letters."""
    try:
        name = mail_domain(text)
    except ValueError as error:
        return Domain("", str(error))
    labels = name.split(".")
    if labels[-1] in SPECIAL_TOPS:
        return Domain("", f"a domain of .{labels[-1]}, in which there are no mailboxes")
    meant = _meant(name)
    if meant:
        return Domain(name, meant=meant)
    parents = (".".join(labels[place:]) for place in range(max(0, len(labels) - 4), len(labels) - 1))
    listed = _disposable()
    return Domain(name, is_disposable=name in listed or any(parent in listed for parent in parents))


def _meant(domain: str) -> str:
    name, _, top = domain.partition(".")
    rest, dot, last = top.rpartition(".")
    mended = f"{rest}{dot}{_TOP_SLIPS[last]}" if last in _TOP_SLIPS else top
    close = _near().get(name, name)
    homes = PROVIDERS.get(close)
    if homes is not None:
        if close != name and mended in homes:
            return f"{close}.{mended}"
        if top in _COM_SLIPS and top not in homes and "com" in homes:
            return f"{close}.com"
    if name in _SHORT and top in _COM_SLIPS:
        return f"{name}.{_SHORT[name]}"
    return f"{name}.{mended}" if mended != top else ""


@cache
def _near() -> dict[str, str]:
    """Names one slip away from a provider's -> that provider's."""
    near: dict[str, str] = {}
    for name in PROVIDERS:
        places = range(len(name) + 1)
        slips = {name[:at] + letter + name[at:] for at in places if at for letter in _LETTERS}
        slips |= {name[:at] + letter + name[at + 1 :] for at in places[1:-1] for letter in _LETTERS}
        slips |= {name[:at] + name[at + 1 :] for at in places[1:-1]}
        slips |= {name[:at] + name[at + 1] + name[at] + name[at + 2 :] for at in places[:-2]}
        near |= dict.fromkeys(slips - PROVIDERS.keys() - _REAL, name)
    return near


@cache
def _disposable() -> frozenset[str]:
    from disposable_email_domains import blocklist

    return frozenset(blocklist)


class AddressJudge:
    """Judges columns of addresses, and remembers domains.

    Args:
        role_accounts: what becomes of addresses of offices.
        disposable: what becomes of addresses that are thrown away after use.
        is_correcting: whether an address that is nearly one is taken as what was probably meant.
        problems: asks DNS whether domains take mail; left out, nobody asks.
    """

    def __init__(
        self,
        *,
        role_accounts: Policy = "refuse",
        disposable: Policy = "refuse",
        is_correcting: bool = False,
        problems: Problems | None = None,
    ) -> None:
        self.role_accounts = role_accounts
        self.disposable = disposable
        self.is_correcting = is_correcting
        self.problems = problems
        self._domains: dict[str, Domain] = {}

    def judge(self, texts: pl.Series) -> pl.DataFrame:
        """Columns of `VERDICT`, a row for each text."""
        read = self._read(texts)
        # one letter in a domain, or a whole address that is one without its trimmings
        suggestion = pl.when(pl.col("meant") != "").then(
            pl.concat_str(pl.col("local"), pl.lit("@"), pl.col("meant"))
        )
        read = read.with_columns(suggestion.alias("suggestion")).with_row_index("row")
        unread = read.filter(pl.col("said").is_not_null())
        if unread.height:
            again = self._read(_without_trimmings(unread["text"]))
            domain = pl.when(pl.col("meant") != "").then("meant").otherwise("domain")
            mended = again.select(
                unread["row"],
                pl.when(pl.col("said").is_null())
                .then(pl.concat_str("local", pl.lit("@"), domain))
                .alias("mended"),
                (pl.col("is_disposable") & (pl.col("meant") == "")).alias("is_mended_disposable"),
            )
            read = read.join(mended, on="row", how="left", maintain_order="left").with_columns(
                pl.coalesce("suggestion", "mended").alias("suggestion"),
                pl.coalesce("is_mended_disposable", "is_disposable").alias("is_disposable"),
            )
        written = pl.concat_str(pl.col("local"), pl.lit("@"), pl.col("domain"))
        is_corrected = pl.lit(self.is_correcting) & pl.col("suggestion").is_not_null()
        read = read.with_columns(is_corrected.fill_null(False).alias("is_corrected")).with_columns(
            pl.when("is_corrected")
            .then("suggestion")
            .when(pl.col("said").is_null() & pl.col("text").is_not_null())
            .then(written)
            .alias("email")
        )
        return self._refused(read)

    def _refused(self, read: pl.DataFrame) -> pl.DataFrame:
        """What of addresses that can be read is not taken."""
        local = pl.col("email").str.extract(r"^([^@+]*)", 1)
        is_role = local.is_in(list(ROLES)).fill_null(False)
        unattended = local.is_in(list(UNATTENDED)).fill_null(False)
        disposable = pl.col("is_disposable").fill_null(False) & pl.lit(self.disposable == "refuse")
        deaf = pl.lit(None, pl.String)
        if self.problems is not None:
            domains = read["email"].str.extract(r"@(.*)$", 1)
            found = self.problems(domains.drop_nulls().unique().to_list())
            table = pl.DataFrame(
                {"name": list(found.keys()), "problem": list(found.values())},
                schema={"name": pl.String(), "problem": pl.String()},
            )
            joined = pl.DataFrame({"name": domains}).join(table, on="name", how="left", maintain_order="left")
            read = read.with_columns(joined["problem"])
            deaf = pl.col("problem")
        is_slip = (pl.col("meant") != "") & ~pl.col("is_corrected")
        quoted = pl.concat_str(pl.lit('"'), pl.col("text").str.slice(0, 80), pl.lit('"'))
        cases: list[tuple[pl.Expr, str, pl.Expr]] = [
            (
                pl.col("said").is_not_null() & ~pl.col("is_corrected"),
                "syntax",
                pl.concat_str(quoted, pl.lit(" is no e-mail address: "), "said"),
            ),
            (
                is_slip.fill_null(False),
                "typo",
                pl.concat_str(quoted, pl.lit(" looks misspelt, perhaps "), "suggestion"),
            ),
            (unattended, "unattended", pl.concat_str(quoted, pl.lit(" is a mailbox that nobody reads"))),
            (
                disposable,
                "disposable",
                pl.concat_str(quoted, pl.lit(" is of a domain for throwaway addresses")),
            ),
            (
                is_role & pl.lit(self.role_accounts == "refuse"),
                "role_account",
                pl.concat_str(quoted, pl.lit(" belongs to an office, and not to a person")),
            ),
            (deaf.is_not_null(), "no_mail", pl.concat_str(quoted, pl.lit(": "), deaf)),
        ]
        code, said = pl.lit(None, pl.String), pl.lit(None, pl.String)
        for is_so, word, words in reversed(cases):
            code = pl.when(is_so).then(pl.lit(word)).otherwise(code)
            said = pl.when(is_so).then(words).otherwise(said)
        return read.select(
            pl.when(code.is_null()).then("email").alias("email"),
            code.alias("code"),
            said.alias("said"),
            pl.when(code.is_in(["syntax", "typo"])).then("suggestion").alias("suggestion"),
            (is_role & code.is_null()).alias("is_role"),
            (pl.col("is_corrected") & code.is_null()).alias("is_corrected"),
        )

    def _read(self, texts: pl.Series) -> pl.DataFrame:
        """Parts of addresses: text, local, domain, meant, is_disposable; `said` where it is none, and why."""
        text = texts.cast(pl.String).str.strip_chars(SPACES)
        frame = pl.DataFrame({"text": text}).with_columns(
            pl.when(pl.col("text") != "").then("text").alias("text")
        )
        if (frame["text"].str.len_bytes() != frame["text"].str.len_chars()).any():
            frame = frame.with_columns(pl.col("text").str.normalize("NFC"))
        frame = frame.with_columns(
            pl.col("text")
            .str.to_lowercase()
            .str.splitn("@", 2)
            .struct.rename_fields(["local", "host"])
            .alias("parts")
        ).unnest("parts")
        frame = frame.join(
            self._table(frame["host"].drop_nulls().unique()), on="host", how="left", maintain_order="left"
        )
        length = pl.col("local").str.len_bytes()
        good = (
            pl.col("local").str.contains(_LOCAL)
            & (length <= LONGEST_LOCAL)
            & (length + 1 + pl.col("domain").str.len_bytes() <= LONGEST)
            & (pl.col("domain") != "")
        )
        frame = frame.with_columns(good.fill_null(False).alias("good"))
        bad = pl.col("text").is_not_null() & ~pl.col("good")
        if frame.select(bad.any()).item():
            frame = frame.with_columns(pl.when(bad).then(_why_not(length)).alias("said"))
        else:
            frame = frame.with_columns(pl.lit(None, pl.String).alias("said"))
        return frame.select("text", "local", "domain", "meant", "is_disposable", "said").with_columns(
            pl.when(pl.col("said").is_null()).then("meant").fill_null("").alias("meant")
        )

    def _table(self, hosts: pl.Series) -> pl.DataFrame:
        known = self._domains
        if len(known) > _KNOWN_DOMAINS:
            known.clear()
        names = hosts.to_list()
        for name in names:
            if name not in known:
                known[name] = judge_domain(name)
        found = [known[name] for name in names]
        return pl.DataFrame(
            {
                "host": names,
                "domain": [one.name for one in found],
                "meant": [one.meant for one in found],
                "is_disposable": [one.is_disposable for one in found],
                "host_said": [one.said for one in found],
            },
            schema={
                "host": pl.String(),
                "domain": pl.String(),
                "meant": pl.String(),
                "is_disposable": pl.Boolean(),
                "host_said": pl.String(),
            },
        )


def _why_not(length: pl.Expr) -> pl.Expr:
    text, local = pl.col("text"), pl.col("local")
    return (
        pl.when(~text.str.contains("@", literal=True))
        .then(pl.lit("it has no @"))
        .when(text.str.count_matches("@", literal=True) > 1)
        .then(pl.lit("it has more than one @"))
        .when(text.str.contains(r"\s"))
        .then(pl.lit("it has a space in it"))
        .when(local == "")
        .then(pl.lit("nothing stands before the @"))
        .when(length > LONGEST_LOCAL)
        .then(pl.lit(f"more than {LONGEST_LOCAL} octets stand before the @"))
        .when(~local.str.contains(_LOCAL))
        .then(
            pl.when(local.str.contains(r"^\.|\.\.|\.$"))
            .then(pl.lit("a dot too many stands before the @"))
            .otherwise(pl.lit("characters stand before the @ that must not"))
        )
        .when(pl.col("host_said").fill_null("") != "")
        .then(pl.concat_str(pl.lit("behind the @ stands "), "host_said"))
        .otherwise(pl.lit(f"it has more than {LONGEST} octets"))
    )


def _without_trimmings(texts: pl.Series) -> pl.Series:
    """What is often around or within an address that somebody copied or typed."""
    return (
        texts.to_frame("text")
        .select(
            pl.coalesce(pl.col("text").str.extract(r"<([^<>]*@[^<>]*)>", 1), "text")
            .str.replace(r"(?i)^mailto:", "")
            .str.replace(r"(?i)\s*[\(\[]\s*at\s*[\)\]]\s*", "@")
            # spaces elsewhere may part two words, of which nobody knows which was meant
            .str.replace_all(rf"[\s{SPACES}]*([@.,])[\s{SPACES}]*", "${1}")
            .str.replace_all("@+", "@")
            .str.replace_all("[,.]+", ".")
            .str.replace_all(r"\.*@\.*", "@")
            .str.strip_chars(SPACES + "\"'`()[]<>{}.,;:")
        )
        .to_series()
    )
