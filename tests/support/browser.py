# SPDX-License-Identifier: GPL-3.0-or-later
"""Headless Chromium, driven by its DevTools protocol over a pipe: one JSON message after another, each ended
by a zero byte (https://chromedevtools.github.io/devtools-protocol/)."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL
from typing import Any, Final

import pytest
import trio

PATIENCE: Final = 120.0  # s for one step; a machine that runs all tests at once is slow
GOODBYE: Final = 5.0  # s that the browser has to end by itself
LOOK: Final = 0.05  # s between looks at a page that is waited for

# The browser reads its messages from descriptor 3 and writes to 4.
_ON_3_AND_4: Final = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execvp(sys.argv[3], sys.argv[3:])"
)
_KEYS: Final = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, "")}


@dataclass(eq=False)
class Browser:
    """A running browser. Answers go to who asked, by number; events to the page, by session."""

    to: trio.lowlevel.FdStream
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _answers: dict[int, trio.MemorySendChannel[dict[str, Any]]] = field(default_factory=dict)
    pages: dict[str, Page] = field(default_factory=dict)

    async def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number], mine = trio.open_memory_channel[dict[str, Any]](1)
        asked = {"id": number, "method": method, "params": parameters}
        if session is not None:
            asked["sessionId"] = session
        await self.to.send_all(json.dumps(asked).encode() + b"\0")
        with trio.fail_after(PATIENCE):
            answer = await mine.receive()
        assert "error" not in answer, f"{method}: {answer['error']}"
        found: dict[str, Any] = answer["result"]
        return found

    async def read(self, source: trio.lowlevel.FdStream) -> None:
        rest = b""
        async for chunk in source:
            *whole, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers.pop(message["id"]).send_nowait(message)
                elif (page := self.pages.get(message.get("sessionId", ""))) is not None:
                    page.take(message["method"], message["params"])

    async def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Open a page in a new tab, and wait until it is loaded. A width below 600 is a phone's."""
        target = (await self.ask("Target.createTarget", url="about:blank"))["targetId"]
        session = (await self.ask("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await page.ask(f"{domain}.enable")
        await page.resize(width, height)
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        await page.ask("Emulation.setEmulatedMedia", features=features)
        await page.ask("Page.navigate", url=url)
        await page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


@dataclass(eq=False)
class Page:
    """One tab. ``errors``: what its console shows as errors, exceptions, and breaches of its policy.
    ``asked``: the addresses that it asked for."""

    browser: Browser
    session: str
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self.browser.ask(method, self.session, **parameters)

    def take(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.errors.append(str(details.get("exception", {}).get("description", details["text"])))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert"):
                self.errors.append(json.dumps(params["args"]))
            case "Audits.issueAdded" if params["issue"]["code"] == "ContentSecurityPolicyIssue":
                self.errors.append(json.dumps(params["issue"]["details"]))
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
            case "Network.webSocketCreated":
                self.asked.append(params["url"])

    async def run(self, script: str) -> Any:
        """Return the value of an expression, of the promise's where it is one."""
        answer = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        with trio.move_on_after(PATIENCE) as scope:
            while not await self.run(f"Boolean({script})"):
                await trio.sleep(LOOK)
        if scope.cancelled_caught:
            there = str(await self.run("document.body.innerText"))[:2000]
            raise AssertionError(f"never came true: {script}\n{self.errors}\n{there}")

    async def text(self, selector: str) -> str:
        return str(await self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def click(self, selector: str) -> None:
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key as a person does, for whatever has the focus."""
        name, code, text = _KEYS[key]
        pressed = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        more = {"text": text} if text else {}
        await self.ask("Input.dispatchKeyEvent", type="keyDown", **pressed, **more)
        await self.ask("Input.dispatchKeyEvent", type="keyUp", **pressed)

    async def write(self, text: str) -> None:
        await self.ask("Input.insertText", text=text)

    async def resize(self, width: int, height: int) -> None:
        await self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    async def picture(self, file: Path, *, whole: bool = False) -> None:
        shot = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        await trio.Path(file).write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def chromium(
    home: Path, *, space: str | None = None, key: bytes | None = None
) -> AsyncIterator[Browser]:
    """Run a browser with its profile in ``home``, if asked in a network namespace. ``key``: the SHA-256 of
    the one public key (SubjectPublicKeyInfo) that it takes in a certificate that nobody vouches for.
    `scripts/setup` installs the browser, but on Ubuntu: there it is a snap alone, which may not read a
    profile outside the user's home."""
    found = map(shutil.which, ("chromium", "google-chrome"))
    program = next((path for path in found if path and Path(path).resolve().name != "snap"), None)
    if program is None:
        pytest.skip("no Chromium here but perhaps a snap: install google-chrome to test the dashboard")
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    arguments = [
        program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={home}", "--no-first-run",
        "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--no-default-browser-check", "--disable-dev-shm-usage", "--password-store=basic",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *([f"--ignore-certificate-errors-spki-list={base64.b64encode(key).decode()}"] if key else []),
        "about:blank",
    ]  # fmt: skip
    entry = [] if space is None else ["ip", "netns", "exec", space]
    process = await trio.lowlevel.open_process(
        [*entry, sys.executable, "-c", _ON_3_AND_4, str(to_read), str(from_write), *arguments],
        pass_fds=(to_read, from_write), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip
    os.close(to_read)
    os.close(from_write)
    try:
        async with (
            trio.lowlevel.FdStream(to_write) as to,
            trio.lowlevel.FdStream(from_read) as source,
            trio.open_nursery() as nursery,
        ):
            browser = Browser(to)
            nursery.start_soon(browser.read, source)
            yield browser
            with trio.move_on_after(GOODBYE):
                await browser.ask("Browser.close")
                await process.wait()
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
