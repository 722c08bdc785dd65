# SPDX-License-Identifier: MIT
"""imgvm: describe a machine in YAML, pack it into one qcow2 file, run it anywhere.

Nothing native is loaded by importing this package.
"""

__version__ = "0.1.0"
