# SPDX-License-Identifier: MIT
"""The virtual machine monitor: the handle of a machine (vm), the engines (engine), the terminal (console).

The build imports this package before the native core exists: nothing is loaded here.
"""
