"""How often the suites that repeat something at random do so: a little in CI, much in the long run."""

import os


def count(ci: int, long: int) -> int:
    """`ci` normally, `long` under `make test-long` (SPEECHCLIP_LONG=1)."""
    return long if os.environ.get("SPEECHCLIP_LONG") == "1" else ci
