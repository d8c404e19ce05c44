"""Measured figures; each module is a command that prints one JSON line per figure."""

import interrupts  # noqa: F401 - before all other imports
