"""Credit for the parts of a question, and confidence intervals of mean credits."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

PART_RATIO = 1.3
"""Weight of a part relative to the part before it; later parts build on earlier ones."""

Parts = Sequence[bool]
"""For each part of a question, whether its answer is right."""


def part_weights(num_parts: int) -> tuple[float, ...]:
    """Weights of the parts of a question, as in MathCanvas-Bench.

    They are proportional to 1.3^k. For up to 4 parts this agrees with the published weights to 4
    decimals: 0.4348 and 0.5652; 0.2506, 0.3258 and 0.4236; 0.1616, 0.2101, 0.2732 and 0.3551.

    Args:
        num_parts: Number of parts of the question.

    Returns:
        The weights, one per part; their sum is 1.
    """
    total = sum(PART_RATIO**k for k in range(num_parts))
    return tuple(PART_RATIO**k / total for k in range(num_parts))


def plain_credit(parts: Parts) -> float:
    """The share of the parts that are right."""
    return sum(parts) / len(parts)


def complete_credit(parts: Parts) -> float:
    """1 if all parts are right, else 0."""
    return float(all(parts))


def weighted_credit(parts: Parts) -> float:
    """The sum of the weights of the parts that are right."""
    return math.fsum(
        w for w, is_right in zip(part_weights(len(parts)), parts, strict=True) if is_right
    )


CREDITS: Mapping[str, Callable[[Parts], float]] = MappingProxyType(
    {"accuracy": plain_credit, "complete": complete_credit, "weighted": weighted_credit}
)
"""Name of the mean over questions -> credit of a question. All agree for one-part questions."""


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's confidence interval of a proportion.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        share: Measured proportion, 0 to 1.
        count: Number of independent trials; for 0 the interval is (0, 1).
        z: Quantile of the normal distribution; 1.96 for 95 %.

    Returns:
        The lower and the upper bound.
    """
    if count == 0:
        return 0.0, 1.0
    centre = share + z**2 / (2 * count)
    reach = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
