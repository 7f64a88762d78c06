"""Size, links and images, and what mail programs do not show: judged on whole messages."""

from __future__ import annotations

import email.message
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliverability.links import check_links, is_private_host, shown, url_problem
from deliverability.markup import Reference
from deliverability.samples import Sample, one_a_locale
from deliverability.size import CLIPPED_FROM, check_size
from deliverability.support import FEATURES, check_support

TOO_GOOD = '<a href="https://shop.example.com/a">Look</a>'


def sample(html: str, locale: str = "") -> Sample:
    message = email.message.EmailMessage()
    message["Subject"] = "Hello"
    message.set_content("text")
    message.add_alternative(html, subtype="html", cte="quoted-printable")
    return Sample(message.as_bytes(), locale)


def links_of(html: str, *, is_rehearsal: bool = False, **more):
    return check_links([sample(html)], is_rehearsal=is_rehearsal, **more)


def test_size_is_that_of_the_html_without_its_transfer_encoding() -> None:
    # each letter of two bytes is six characters as quoted-printable
    fits = sample("é" * (CLIPPED_FROM // 2 - 1))
    result = check_size([sample("<p>x</p>"), fits])
    assert result.is_passed and result.is_blocking
    assert CLIPPED_FROM - 4 < result.metadata["html_bytes"] < CLIPPED_FROM
    assert result.metadata["message_bytes"] > 2 * CLIPPED_FROM
    over = check_size([sample("<p>x</p>"), sample("é" * (CLIPPED_FROM // 2 + 1), "fr")])
    assert not over.is_passed
    assert "in fr has 102.0 KB of the 102 KB" in over.message


def test_size_of_exactly_the_limit_is_clipped() -> None:
    html = "<p>hello</p>\n"
    size = len(sample(html).html.encode())
    assert not check_size([sample(html)], limit=size).is_passed
    assert check_size([sample(html)], limit=size + 1).is_passed


def test_one_sample_a_locale_the_largest() -> None:
    samples = [sample("a"), sample("aaaa"), sample("aa"), sample("b", "de")]
    assert {one.locale: one.html.strip() for one in one_a_locale(samples)} == {"": "aaaa", "de": "b"}


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="">x</a>', "leads nowhere"),
        ('<a href="#">x</a>', "leads nowhere"),
        ('<a href="/shop">x</a>', "is relative"),
        ('<a href="www.shop.com">x</a>', "is relative"),
        ('<a href="javascript:alert(1)">x</a>', "has scheme javascript"),
        ('<a href="https://">x</a>', "has no host"),
        ('<a href="https://shop..com">x</a>', "has no host"),
        ('<a href="https://shop.com/a b">x</a>', "white space"),
        ('<a href="https://shop.com:x/">x</a>', "is no address"),
        ('<a href="https://shop.com/{{ x }}">x</a>', "merge tag"),
        ('<a href="https://127.1/">x</a>', "has a number for a host"),
        ('<a href="mailto:nobody">x</a>', "is no mail address"),
        ('<a href="https://localhost/">x</a>', "only this machine or network"),
        ('<a href="http://10.1.2.3/x">x</a>', "only this machine or network"),
        ('<a href="http://[fd00::1]/">x</a>', "only this machine or network"),
        ('<a href="https://wiki/page">x</a>', "only this machine or network"),
        ('<a href="https://2130706433/">x</a>', "only this machine or network"),
        ('<img src="" alt="x">', "has no address"),
        ('<img src="https://shop.com/a.png">', "has no alt text"),
        ('<a href="https://shop.com/b"><img src="https://shop.com/a.png" alt=""></a>', "nobody is told"),
        ('<img src="http://shop.com/a.png" alt="a">', "is loaded by http://"),
        ('<td background="http://shop.com/a.png">x</td>', "is loaded by http://"),
        ("<p style=\"background: url('http://shop.com/a.png')\">x</p>", "is loaded by http://"),
        ('<style>@import url("http://shop.com/a.css");</style>', "Style sheet or font"),
        ('<img src="data:image/png;base64,AAAA" alt="a">', "publish it as an asset"),
    ],
)
def test_what_is_wrong_with_links_and_images(html: str, problem: str) -> None:
    result = links_of(html)
    assert not result.is_passed and result.is_blocking
    assert problem in result.message
    assert result.metadata["problems"] == 1


@pytest.mark.parametrize(
    "html",
    [
        '<a href="https://shop.com/a?b=c&amp;d=e#f">x</a>',
        '<a href="http://shop.com/">a link may be plain http</a>',
        '<a href="https://bücher.de/">x</a>',
        '<a href="https://[2606:4700::1]/">x</a>',
        '<a href="mailto:us@shop.com?subject=Hi">x</a>',
        '<a href="tel:+441234">x</a>',
        '<a href="#top">x</a>',
        '<img src="cid:logo" alt="">',
        '<img src="https://shop.com/a.png" alt="">',
        '<a href="https://shop.com/b"><img src="https://shop.com/a.png" alt="Boots"></a>',
        '<a href="https://shop.com/b"><img src="https://shop.com/a.png" alt=""> Boots</a>',
        "<a name=top>x</a>",
        '<!--[if mso]><v:fill src="http://10.0.0.1/x"/><![endif]-->',
    ],
)
def test_what_is_right(html: str) -> None:
    result = links_of(html)
    assert result.is_passed, result.message


def test_this_machine_may_be_linked_to_in_a_rehearsal_only() -> None:
    html = '<a href="http://127.0.0.1:18124/x">x</a><img src="http://localhost/o/t.gif" alt="">'
    assert links_of(html, is_rehearsal=True).is_passed
    assert links_of(html).metadata["problems"] == 2


def test_a_tracked_link_is_judged_by_where_it_leads() -> None:
    html = '<a href="https://mail.shop.com/c/token/1/abc">x</a>'
    assert links_of(html).is_passed
    found = links_of(html, unwrap=lambda url: "https://intranet.corp/" if "/c/" in url else None)
    assert "'https://intranet.corp/' leads to a host" in found.message


def test_what_did_not_answer_is_a_problem_and_what_was_not_asked_is_said() -> None:
    assert "not asked" in links_of(TOO_GOOD).message
    gone = links_of(TOO_GOOD, reached={"https://shop.example.com/a": "is answered with HTTP status 404"})
    assert "HTTP status 404" in gone.message and not gone.is_passed
    assert "1 of them answer" in links_of(TOO_GOOD, reached={"https://shop.example.com/a": ""}).message


def test_findings_show_no_tokens() -> None:
    result = links_of('<a href="http://me:pass@10.0.0.1/x?token=secret#frag">x</a>')
    assert "'http://10.0.0.1/x'" in result.message
    assert shown("https://a.com/" + "x" * 200).endswith("...")


@given(st.text(), st.sampled_from(["link", "image", "style"]), st.booleans())
def test_any_text_is_judged_without_an_error(url: str, kind, is_rehearsal: bool) -> None:
    assert isinstance(url_problem(Reference(url, kind), is_rehearsal=is_rehearsal), str)


@given(st.ip_addresses())
def test_an_address_is_private_unless_it_is_global(address) -> None:
    assert is_private_host(str(address)) is not address.is_global


@given(st.text(max_size=400))
def test_any_html_is_read(html: str) -> None:
    from deliverability.markup import Markup

    Markup.read(html)


USES: dict[str, str] = {
    "html-video": "<video></video>",
    "html-audio": "<audio></audio>",
    "html-object": "<object></object>",
    "html-svg": "<svg></svg>",
    "html-form": "<form></form>",
    "image-svg": '<img src="https://a.com/x.svg?v=1" alt="">',
    "image-webp": '<img src="https://a.com/x.webp" alt="">',
    "image-avif": '<img src="https://a.com/x.avif" alt="">',
    "css-display-flex": '<p style="display:flex">x</p>',
    "css-display-grid": "<style>p { display : inline-grid }</style>",
    "css-gap": '<p style="column-gap:1px">x</p>',
    "css-position": '<p style="color:red; position:absolute">x</p>',
    "css-transform": '<p style="transform:rotate(3deg)">x</p>',
    "css-animation": '<p style="animation-name:x">x</p>',
    "css-variables": '<p style="color:var(--x)">x</p>',
    "css-unit-calc": '<p style="width:calc(1px + 2px)">x</p>',
    "css-function-clamp": '<p style="width:clamp(1px,2px,3px)">x</p>',
    "css-background-image": '<p style="background:#fff url(https://a.com/x.png)">x</p>',
    "css-linear-gradient": '<p style="background:linear-gradient(red, blue)">x</p>',
    "css-opacity": '<p style="opacity:.5">x</p>',
    "css-object-fit": '<p style="object-fit:cover">x</p>',
}


@pytest.mark.parametrize("slug", [feature.slug for feature in FEATURES])
def test_each_feature_is_found_alone_and_warns_only(slug: str) -> None:
    result = check_support([sample(USES[slug])])
    assert not result.is_passed and not result.is_blocking
    assert set(result.metadata) == {"features", "source", slug}


def test_common_html_warns_of_nothing() -> None:
    html = """
        <style>@media only screen { .a { width:100% !important; text-transform:uppercase; background-position:0 0 } }
        /* display:flex */</style>
        <p style="display:block;opacity:1;opacity:1.0;opacity:0;background:#fff;border-radius:3px">gap: 1px</p>"""
    result = check_support([sample(html)])
    assert result.is_passed, result.message


def test_the_message_says_who_does_not_show_it() -> None:
    check: Callable[[str], str] = lambda html: check_support([sample(html)]).message  # noqa: E731
    assert check('<p style="display:flex">x</p>') == "display: flex is not shown by Outlook for Windows."
