"""Shares of the next batch by Thompson sampling."""

from __future__ import annotations

from collections.abc import Mapping

from ml.experiments.bayes import Posterior


def thompson_weights(posteriors: Mapping[str, Posterior], *, floor: float = 0.05) -> dict[str, float]:
    """Weights of the variants for the next batch: each in proportion to its chance to be the best.

    Thompson, On the likelihood that one unknown probability exceeds another, Biometrika 25, 1933. Who draws a variant
    for each contact from the posterior gets these shares on average; a batch gets them exactly, without a seed. The
    floor keeps every variant in play, so that a change of the world is seen, and effects can still be estimated:

        weight = floor + (1 - k floor) chance.

    As the shares change from batch to batch, compare variants within batches only (`segment_effects` with the batch
    as the segment, its `combined`): a pooled comparison mixes the change of the shares with that of the days.

    Args:
        posteriors: from `bayes_proportions` or `bayes_means`, over the batches so far.
        floor: the least share of any variant.

    Returns:
        Weights that sum to 1, for the assignment; give each batch an experiment name of its own if contacts may come
        back and should be drawn anew.

    Raises:
        ValueError: no variants, or a floor that is negative or leaves nothing to allocate.
    """
    k = len(posteriors)
    if not k or not 0 <= floor * k < 1:
        raise ValueError(
            f"a floor of {floor} for {k} variants: there must be one, and their floors sum below 1"
        )
    chances = {variant: posterior.chance_best for variant, posterior in posteriors.items()}
    total = sum(chances.values())
    return {variant: floor + (1 - k * floor) * chance / total for variant, chance in chances.items()}
