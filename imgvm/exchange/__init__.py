# SPDX-License-Identifier: MIT
"""Images as something else and back: folders, other programs' machines, registries, signatures."""
