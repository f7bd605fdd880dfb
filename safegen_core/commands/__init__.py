# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `safegen`, one file each.

A module here is a command as soon as it exists. It offers `register(subparsers) -> None`, which
adds its parser with `set_defaults(run=...)`, where `run(args)` returns the exit status: 0, or 1
when a check says no. What is wrong with the input is raised as a SafeGenError. Every call of
`safegen` imports all of them, so torch and other third-party packages are imported by the function
that needs them, never at the top.
"""
