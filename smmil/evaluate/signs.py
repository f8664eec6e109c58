"""Whether the sign of a run's sign-aware score is supported (`smmil.predictions.signed`).

The score follows the bag logit, so it points the wrong way where the logit does not tell positive from negative bags.
Its sign is supported where the bag AUROC of the validation bags is above chance at the one-sided level of 5 % and the
agreement is not negative. Fewer than five validation bags support no sign.

Evidence: 290 runs of five methods (ABMIL, DSMIL, CLAM, T+AP, SmAP) on bags of scikit-learn's digits and of Gaussian
features with a planted shift, 24 to 200 training and 12 to 40 validation bags, half of them trained with labels that
were flipped at random. A sign is wrong where the sign-aware score's instance AUROC is below .5, right above .6.

| | runs | wrong | agreement below .71 | not supported |
|---|---|---|---|---|
| learned (true labels, test bag AUROC above .7) | 78 | 0 | 50 | 10 |
| nothing to learn (random labels, or no shift) | 170 | 110 | 107 | 159 |

The validation bag AUROC tells right from wrong signs with an AUROC of .87, the agreement with .51: in a bag of few
positive instances the mean does not explain the logit, whatever its sign. All three runs of negative agreement were
wrong. Of the 203 runs without support 112 were wrong, of the 87 others 7.
"""

from math import sqrt

from smmil.artifacts.records import SplitMetrics

# one-sided 5 % of the normal distribution
LEAST_SUPPORT = 1.645
UNSUPPORTED = (
    "Sign-aware score not to be trusted (the run's bag AUROC on validation is not above chance at the 5 % level, or "
    "its agreement is negative)"
)


def sign_support(split: SplitMetrics) -> float | None:
    """Return the support for the sign of a run's sign-aware score; below `LEAST_SUPPORT` it is not to be trusted.

    Returns:
        Standard deviations of the validation bag AUROC above chance, if the logits of the P positive and N negative
        bags come from one distribution: (AUROC - 1/2) / sqrt((P + N + 1) / (12 P N)), Mann-Whitney without ties. Minus
        infinity where it is undefined or the agreement is negative; None for a run without sign-aware score.
    """
    if split.signed_agreement is None:
        return None
    area, positives = split.val.values.get("bag_auroc"), split.val.n_positive_bags
    pairs = positives * (split.val.n_bags - positives)
    if area is None or not pairs or split.signed_agreement < 0:
        return float("-inf")
    return (area - 0.5) / sqrt((split.val.n_bags + 1) / (12 * pairs))


def is_unsupported(split: SplitMetrics) -> bool:
    """Return whether a run has a sign-aware score that is not to be trusted."""
    support = sign_support(split)
    return support is not None and support < LEAST_SUPPORT
