"""How a benchmark tells what it measured: one JSON line per figure on standard output, what it does on standard error."""

from __future__ import annotations

import json
import sys

from utils import log


def report(name: str, value: float, told: dict, ratio_to: str, reference: float, target: float | None) -> None:
    """Prints one figure.

    Args:
        name: of the figure.
        value: what was measured.
        told: "lesions" and "unit".
        ratio_to: what it is compared with, measured in the same run.
        reference: its value.
        target: of the value or the ratio, whichever the benchmark aims at; None for none.
    """
    line = {"benchmark": name, "lesions": told["lesions"], "value": round(value, 4), "unit": told["unit"]}
    log(json.dumps(line | {"ratio_to": ratio_to, "ratio": round(value / reference, 4), "target": target}))


def progress(text: str) -> None:
    """Says what is being measured."""
    print(text, file=sys.stderr, flush=True)
