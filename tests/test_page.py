# SPDX-License-Identifier: GPL-3.0-or-later
"""A page shows what it is given, as text."""

from __future__ import annotations

import pytest

jinja2 = pytest.importorskip("jinja2")

from safegen_core.page import template  # noqa: E402


def test_what_is_put_in_is_escaped_and_filtered(tmp_path):
    (tmp_path / "page.html.j2").write_text("<p>{{ name }} {{ 2 | twice }}</p>", encoding="utf-8")
    page = template(tmp_path / "page.html.j2", twice=lambda n: str(2 * n))
    assert page.render(name="<script>") == "<p>&lt;script&gt; 4</p>"


def test_what_is_missing_is_an_error(tmp_path):
    (tmp_path / "page.html.j2").write_text("{{ name }}", encoding="utf-8")
    with pytest.raises(jinja2.UndefinedError):
        template(tmp_path / "page.html.j2").render()
