# SPDX-License-Identifier: GPL-3.0-or-later
"""How the API sends pictures."""

from __future__ import annotations

import base64
import io


def encode_pil_to_base64(image):
    with io.BytesIO() as file:
        image.save(file, format="PNG")
        return base64.b64encode(file.getvalue())
