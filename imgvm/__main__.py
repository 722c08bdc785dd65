# SPDX-License-Identifier: MIT
"""`python -m imgvm`."""

import sys

from imgvm.cli import main

sys.exit(main())
