import interrupts  # noqa: F401 - before all other imports
