# SPDX-License-Identifier: MIT
"""`imgvm schema`: the JSON Schema of the config, for editors."""

from __future__ import annotations

import sys


def command() -> None:
    """Print the JSON Schema (2020-12) of the config."""
    from imgvm.config.schema import schema_text

    sys.stdout.write(schema_text())
