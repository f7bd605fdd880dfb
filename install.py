# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing to install.

Hosts that find this file run it after a download (ComfyUI-Manager in a process of its own, with
ComfyUI's Python). SafeGen runs on what a host has and replaces none of its packages; the one thing
worth adding by hand, a detector's model, is a file that the user chooses (docs/detectors.md).
"""
