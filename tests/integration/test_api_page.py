"""The page in a real Chromium, over a real target. Needs ci/debian-packages-tests.txt."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import etcd_server
import pytest
from api_process import NVMUSER, SLEEPING, serving, token
from playwright.async_api import Page, async_playwright, expect

from nvmuser import __version__
from nvmuser.model.change import Change
from nvmuser.model.desired import Desired
from nvmuser.model.keys import Key
from nvmuser.model.objects import Controller, Namespace, Volume
from nvmuser.paths import StateDir
from nvmuser.rpc import Client
from nvmuser.supervisor import control, daemon

CHROMIUM = "/usr/bin/chromium"
SCREENSHOTS = Path(__file__).parents[2] / "out/screenshots"
"""Kept for people to look at, and shown by `make docs`."""
ANYTHING = re.compile(".*")
expect.set_options(timeout=60_000)  # a loaded machine is no fault


@pytest.fixture
async def host() -> AsyncIterator[tuple[StateDir, str]]:
    """With a volume in a controller, and a thousand others."""
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory:
        state = StateDir(Path(directory))
        async with daemon.running(state, SLEEPING):
            many = tuple(Volume(f"n{number:03}", size=1 << 20) for number in range(1000))
            shown = (Volume("a", size=1 << 20), Controller("c", (Namespace("a"),)))
            await control.submit(state, Change(create=(*shown, *many)))
            with serving(state, "--listen", "127.0.0.1:0") as (_, (url,)):
                yield state, url


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """A page in which every error of the browser's, and every request to another place, is a failure."""
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = await chromium.new_page(viewport={"width": 1200, "height": 800})
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: None if "//127.0.0.1:" in request.url or request.url.startswith("data:")
                else wrong.append(request.url))  # fmt: skip
        yield page
        await chromium.close()
        assert wrong == []


def grown(desired: Desired) -> Volume:
    volume = desired.get(Key("volume", "b"))
    assert isinstance(volume, Volume)
    return replace(volume, size=4 << 20)


async def enter(page: Page, url: str, secret: str) -> None:
    await page.goto(url)
    await page.get_by_label("Token").fill(secret)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#who")).to_contain_text("token ")


async def keep(page: Page, name: str) -> None:
    """What is on the screen, in light and in dark."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme)
        await page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}.png")
    await page.emulate_media(color_scheme="light")


async def test_what_an_operator_sees_and_does(host: tuple[StateDir, str]) -> None:
    state, url = host
    async with browser() as page:
        await enter(page, url, token(state, "operator"))
        await expect(page.locator("#cards")).to_contain_text("target spdkready")
        await keep(page, "1-overview")
        await page.keyboard.press("2")
        await page.get_by_label("Filter volumes").fill("n00")
        await expect(page.locator("#volume-table tbody tr:visible")).to_have_count(10)
        await page.get_by_label("Filter volumes").fill("")
        await page.get_by_role("button", name="Create a volume").click()
        await page.get_by_label("name").fill("b")
        await page.get_by_label("size").fill("soon")
        await page.get_by_role("button", name="OK").click()
        await expect(page.locator("#dialog .error")).to_contain_text("size 'soon': expected a number of bytes")
        await page.get_by_label("size").fill("2M")
        await page.get_by_role("button", name="OK").click()
        row = page.locator('tr[data-name="b"]')
        await expect(row).to_contain_text("2 MiB")
        await expect(row).to_contain_text("in-sync")
        # What another changes is seen without being asked for.
        await control.alter(state, grown)
        await expect(row).to_contain_text("4 MiB")
        await keep(page, "2-volumes")
        await page.keyboard.press("3")
        await page.get_by_role("button", name="Attach to c").click()
        await page.locator("select[name=volume]").select_option("b")
        await page.get_by_role("button", name="OK").click()
        await expect(page.locator("#controller-table")).to_contain_text("2: b")
        await keep(page, "3-controllers")
        await page.keyboard.press("4")
        await expect(page.locator("#event-table tbody tr").first).to_contain_text("token operator")
        await keep(page, "4-events")
        await page.keyboard.press("5")
        seen = page.locator("#host-table tbody tr")
        await expect(seen.locator("td")).to_have_text(
            ["this host", "live", "spdk ready", "0", "1", "1002", "", "", ANYTHING]
        )
        await keep(page, "5-hosts")


async def test_drift_is_shown_and_repaired(host: tuple[StateDir, str]) -> None:
    state, url = host
    async with browser() as page:
        await enter(page, url, token(state, "operator"))
        async with await Client.connect(state.rpc_socket) as rpc:
            await rpc.call("bdev_aio_delete", {"name": "n007"})
        await expect(page.locator("#drift")).to_contain_text("volume/n007")
        await keep(page, "6-drift")
        await page.get_by_role("button", name="Repair").click()
        await expect(page.locator("#drift")).to_have_text("none")


async def test_the_hosts_of_a_fleet(tmp_path: Path) -> None:
    """This one, with its targets, and one that does not run; what changes is seen without being asked for."""
    with tempfile.TemporaryDirectory(prefix="nvmuser-") as directory, etcd_server.running(tmp_path / "etcd") as etcd:
        state, other = StateDir(Path(directory) / "h1"), StateDir(Path(directory) / "h2")

        async def nvmuser(host: StateDir, *words: str) -> None:
            command = [*NVMUSER, "--state-dir", str(host.root), *words]
            await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=120)

        async with daemon.running(state, SLEEPING):
            await nvmuser(state, "fleet", "init", "--etcd", etcd.url)
            for host in (state, other):
                await nvmuser(host, "fleet", "join", "--etcd", etcd.url, "--name", host.root.name)
            with serving(state, "--listen", "127.0.0.1:0") as (_, (url,)):
                async with browser() as page:
                    await enter(page, url, token(state, "viewer"))
                    await page.get_by_role("tab", name="Hosts").click()
                    mine, away = (page.locator(f'tr[data-name="{name}"] td') for name in ("h1", "h2"))
                    await expect(mine).to_have_text(
                        ["h1 (this host)", "live", "spdk ready", "0", "0", "0", "", __version__, ANYTHING]
                    )
                    await expect(away).to_have_text(
                        ["h2", "does not answer", "–", "–", "0", "0", "", ANYTHING, "none"]  # noqa: RUF001
                    )
                    await nvmuser(state, "host", "cordon", "h1")
                    await expect(mine.nth(1)).to_have_text("live, cordoned")
                    await keep(page, "7-fleet")


async def test_a_viewer_is_offered_nothing_to_change(host: tuple[StateDir, str]) -> None:
    state, url = host
    async with browser() as page:
        await page.goto(url)
        await page.get_by_label("Token").fill("nvmuser_wrong")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_contain_text("the token is not known here")
        await page.get_by_label("Token").fill(token(state, "viewer"))
        await page.get_by_role("button", name="Sign in").click()
        await page.keyboard.press("2")
        await expect(page.locator('tr[data-name="a"]')).to_be_visible()
        assert await page.locator("button:visible", has_text="Delete").count() == 0
        assert await page.locator(".change:visible").count() == 0
        await page.reload()
        await expect(page.locator("#who")).to_have_text("token viewer, viewer")
