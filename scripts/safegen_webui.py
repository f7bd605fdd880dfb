# SPDX-License-Identifier: GPL-3.0-or-later
"""The door of A1111, Forge and reForge, which run this file at start and on Reload UI.

An extension that fails here is simply absent, and pictures are made unprotected. So if anything of
ours cannot be loaded, no picture is made at all, and the message says why.
"""

import modules.processing as _processing


def _refuse(cause):
    original = getattr(_processing.process_images_inner, "safegen_refuses", None)

    def process_images_inner(*args, **kwargs):
        raise RuntimeError(
            f"SafeGen could not start, so no pictures are made: {cause}. See the console for "
            "more; mend it and restart, or disable SafeGen in the Extensions tab to go without."
        )

    process_images_inner.safegen_refuses = original or _processing.process_images_inner
    _processing.process_images_inner = process_images_inner


def _accept():
    original = getattr(_processing.process_images_inner, "safegen_refuses", None)
    if original is not None:
        _processing.process_images_inner = original


try:
    _accept()
    from safegen_webui.extension import start

    start()
    from safegen_webui.script import SafeGen  # noqa: F401 - found here by the host
except Exception as error:
    _refuse(f"{type(error).__name__}: {error}")
    raise  # the host reports it and goes on
