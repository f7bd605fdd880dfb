# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of real hosts in a browser: accordion, cards, paste, Reload UI."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.hosts.webui import server

sync_api = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.host

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
CARD = "#script_txt2img_safegen_card"


@pytest.fixture(scope="module", params=server.KINDS)
def host(request, tmp_path_factory):
    """One host for all tests; without a detector, so that nothing is needed from elsewhere."""
    if reason := server.lacking(request.param):
        pytest.skip(reason)
    if BROWSER is None:
        pytest.skip("chromium is not installed")
    flags = ()
    if request.param == "forge":  # gradio 4 serves no script from outside of the data folder else
        flags = ("--gradio-allowed-path", os.environ[server.KINDS["forge"]])
    data = tmp_path_factory.mktemp(request.param)
    with server.Host(request.param, data, *flags) as running:
        running.options(live_previews_enable=False, safegen_prompts="off", safegen_images="off")
        yield running


@pytest.fixture
def page(host):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        opened(page, host)
        yield page
        browser.close()


def opened(page, host):
    page.goto(host.url, wait_until="domcontentloaded", timeout=120_000)
    page.wait_for_selector("#txt2img_generate", state="visible", timeout=120_000)
    boxes = "[...document.querySelectorAll('.safegen-page textarea')]"
    page.wait_for_function(f"{boxes}.filter(box => box.value.length == 32).length == 2")
    page.locator("#txt2img_prompt textarea").first.fill("a square")
    for name, value in (("steps", 2), ("width", 64), ("height", 64)):
        field = page.locator(f"#txt2img_{name} input[type=number]").first
        field.fill(str(value))
        field.press("Tab")


def generate(page):
    page.locator("#txt2img_generate").click()
    page.wait_for_function(
        f"document.querySelector('{CARD}').childElementCount > 0", timeout=200_000
    )
    return page.locator(CARD).inner_text()


def choose(page, name, entry):
    page.locator(f"#script_txt2img_safegen_{name} input").click()
    page.locator(f"#script_txt2img_safegen_{name} li", has_text=entry).first.click()


# the options were set after the controls were made, which still ask for a detector


def test_a_model_without_a_patch_is_told_in_amber(page):
    for name in ("prompts", "images"):
        choose(page, name, "off")
    told = generate(page).lower()
    assert "not protected" in told
    assert "image check is off" in told
    assert page.locator(f"{CARD} [data-tone=amber]").count() == 1
    assert page.locator("#txt2img_gallery img").count()


def test_what_is_refused_is_told_in_red(page):
    for name in ("prompts", "images"):
        choose(page, name, "off")
    choose(page, "patch", "required")
    assert "no picture was made" in generate(page).lower()
    assert page.locator(f"{CARD} [data-tone=red]").count() == 1


def test_another_page_has_another_secret(page):
    secret = page.evaluate("document.querySelector('.safegen-page textarea').value")
    other = page.context.browser.new_page()
    other.goto(page.url, wait_until="domcontentloaded")
    other.wait_for_function("document.querySelector('.safegen-page textarea')?.value.length == 32")
    assert other.evaluate("document.querySelector('.safegen-page textarea').value") != secret


def test_the_report_holds_no_prompt(page):
    for name in ("prompts", "images"):
        choose(page, name, "off")
    generate(page)
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    page.locator(f"{CARD} .safegen-report button", has_text="Copy report").click()
    report = json.loads(page.evaluate("window.copied"))
    assert report["asked"]["patch"] == "auto"
    assert "a square" not in json.dumps(report)


def test_parameters_are_pasted(page):
    told = "Steps: 2, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, SafeGen: on, "
    told += "SafeGen patch: required, SafeGen strength: 0.5, SafeGen prompts: strict, "
    told += "SafeGen check: art, SafeGen action: withhold"
    page.locator("#txt2img_prompt textarea").first.fill(f"a square\n{told}")
    page.locator("#paste").first.click()
    value = "document.querySelector('#script_txt2img_safegen_{} input').value"
    wanted = {"patch": "required", "prompts": "strict", "images": "art", "strength": "0.5"}
    for name, entry in wanted.items():
        page.wait_for_function(f"{value.format(name)} == '{entry}'")


def test_reload_leaves_every_wrap_once(host, page):
    before = host.get("/safegen/status")["wraps"]
    for _ in range(2):
        page.locator("#footer a, footer a", has_text="Reload UI").first.click()
        page.wait_for_timeout(8_000)
        page.wait_for_function("document.querySelector('#txt2img_generate')", timeout=120_000)
    assert host.get("/safegen/status")["wraps"] == before
    assert all(wrap["installed"] and wrap["outermost"] for wrap in before)
