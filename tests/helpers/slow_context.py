"""Context features number by number, to compare with."""

import math
import statistics

from inference.features import NEIGHBOURS


def slow_score(value, group):
    """(value - mean) / standard deviation in a group, number by number."""
    known = [other for other in group if math.isfinite(other)]
    if not math.isfinite(value):
        return math.nan
    mean = math.fsum(known) / len(known)
    deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in known) / len(known))
    return (value - mean) / deviation if deviation > 1e-9 * abs(mean) + 1e-9 else 0.0


def slow_rank(value, group):
    """Share of a group below the value, with half of those that equal it, number by number."""
    known = [other for other in group if math.isfinite(other)]
    if not math.isfinite(value):
        return math.nan
    return (sum(other < value for other in known) + sum(other == value for other in known) / 2) / len(known)


def slow_outliers(points):
    """Mean distance to the nearest others by the median of that, point by point."""
    points = [tuple(number if math.isfinite(number) else 0.0 for number in point) for point in points]
    distances = []
    for here, point in enumerate(points):
        others = sorted(math.dist(point, other) for there, other in enumerate(points) if there != here)
        distances.append(statistics.fmean(others[:NEIGHBOURS]))
    median = statistics.median(distances)
    return [distance / median if median else 1.0 for distance in distances]
