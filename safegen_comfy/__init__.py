# SPDX-License-Identifier: GPL-3.0-or-later
"""SafeGen on ComfyUI's side: folders, the loaded model, reports. `nodes/` is thin over it."""
