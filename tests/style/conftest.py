# SPDX-License-Identifier: MIT
"""Lets the style tests import their neighbour, files.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
