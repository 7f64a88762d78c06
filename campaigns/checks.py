"""What must be true before a campaign is sent: pure judgements over numbers that others gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from campaigns.audience import AudienceSummary
from campaigns.specs import CampaignSpec

DRIFT_FACTOR = 3.0
_SMALL = 100  # audiences this small may triple by chance


@dataclass(frozen=True)
class CheckResult:
    """A judgement.

    Attributes:
        name: `template_lint`, `consent`, `audience_not_empty`, `audience_drift`, or one of `deliverability.preflight`.
        is_passed: whether nothing was found.
        message: one sentence for people.
        metadata: the numbers behind it.
        is_blocking: whether the send may not go on unless it is passed; a warning otherwise.
    """

    name: str
    is_passed: bool
    message: str
    metadata: Mapping[str, int | float | str] = field(default_factory=dict)
    is_blocking: bool = True


def run_checks(
    spec: CampaignSpec,
    summary: AudienceSummary,
    template_problems: Sequence[str],
    *,
    drift_factor: float = DRIFT_FACTOR,
) -> list[CheckResult]:
    """All checks of a campaign; it may be sent if every one is passed.

    Args:
        spec: the campaign.
        summary: its audience in numbers.
        template_problems: what is wrong with its template, one sentence each; from the renderer.
        drift_factor: how many times the last audience this one may be.
    """
    return [
        check_template(spec, template_problems),
        check_consent(spec, summary),
        check_not_empty(spec, summary),
        check_drift(spec, summary, factor=drift_factor),
    ]


def check_template(spec: CampaignSpec, problems: Sequence[str]) -> CheckResult:
    """`template_lint`: the template compiles, its merge tags have a meaning, and it has what the law asks for."""
    message = (
        "; ".join(problems)
        if problems
        else f"Template {spec.send.template} compiles and knows its merge tags."
    )
    return CheckResult(
        "template_lint",
        not problems,
        message,
        {"template": spec.send.template, "problems": len(problems)},
    )


def check_consent(spec: CampaignSpec, summary: AudienceSummary) -> CheckResult:
    """`consent`: nobody is about to get marketing without consent, or although suppressed."""
    is_passed = summary.unconsented == 0
    skipped = sum(summary.skipped.get(reason, 0) for reason in ("no_consent", "suppressed"))
    if spec.send.category == "transactional":
        message = "A transactional message needs no marketing consent; hard bounces are left out."
    elif is_passed:
        message = f"All {summary.sendable:,} recipients have consented; {skipped:,} without are left out."
    else:
        message = f"{summary.unconsented:,} recipients lack consent or are suppressed. Nothing was sent."
    return CheckResult(
        "consent",
        is_passed,
        message,
        {"category": spec.send.category, "unconsented": summary.unconsented, "left_out": skipped},
    )


def check_not_empty(spec: CampaignSpec, summary: AudienceSummary) -> CheckResult:
    """`audience_not_empty`: somebody is left to send to."""
    metadata = {"members": summary.members, "sendable": summary.sendable, **summary.skipped}
    if summary.sendable:
        return CheckResult(
            "audience_not_empty",
            True,
            f"{summary.sendable:,} of {summary.members:,} contacts get it.",
            metadata,
        )
    if not summary.members:
        why = (
            f"segment {spec.audience.segment}"
            + (" with its condition" if spec.audience.where else "")
            + " is empty"
        )
    else:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.skipped.items())
        why = f"all {summary.members:,} contacts are left out ({reasons})"
    return CheckResult("audience_not_empty", False, f"Nobody would get {spec.campaign}: {why}.", metadata)


def check_drift(spec: CampaignSpec, summary: AudienceSummary, *, factor: float = DRIFT_FACTOR) -> CheckResult:
    """`audience_drift`: the audience is not wildly larger than that of the occurrence before.

    A smaller one harms nobody. A first occurrence has nothing to compare with, and up to a hundred contacts
    are always let through, since tiny segments jump.

    Raises:
        ValueError: the factor is not above 1.
    """
    if factor <= 1:
        raise ValueError("factor must be above 1")
    before = summary.previous_members
    metadata: dict[str, int | float | str] = {"members": summary.members, "factor": factor}
    if not before:
        return CheckResult("audience_drift", True, "This is the first occurrence with an audience.", metadata)
    growth = summary.members / before
    metadata |= {"previous_members": before, "growth": round(growth, 3)}
    is_passed = growth <= factor or summary.members <= _SMALL
    message = f"{summary.members:,} contacts, {growth:.2f} times the {before:,} of the occurrence before"
    if not is_passed:
        message += f"; at most {factor:g} times is let through. Look at segment {spec.audience.segment}"
    return CheckResult("audience_drift", is_passed, f"{message}.", metadata)
