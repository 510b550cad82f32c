"""A headless Chromium, driven over its DevTools pipe: what a page says on the console, asks for and looks like.

Protocol: https://chromedevtools.github.io/devtools-protocol. One process, one tab, no port, no package.
"""

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOK = Path(__file__).with_name("look.js")
ANSWER_SECONDS = 30
SETTLE_SECONDS = 0.1  # after the page is loaded, for what it still wants to say
SPOKEN = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")


@dataclass
class Seen:
    """What came of one page in one window."""

    messages: list[str] = field(default_factory=list)
    """Everything on the console, and exceptions."""
    requests: list[str] = field(default_factory=list)
    """Addresses asked for beside the page's own."""
    look: dict[str, Any] = field(default_factory=dict)
    """What look.js found."""


class Browser:
    """One tab of a Chromium that `browsing` started."""

    def __init__(self, reading: int, writing: int):
        self.reading, self.writing, self.buffer, self.number = reading, writing, b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.call("Emulation.setScrollbarsHidden", hidden=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before it are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters, **self.session}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            found = self._receive(ANSWER_SECONDS)
            assert found is not None, f"Chromium: no answer to {method}"
            if found.get("id") == self.number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]
            self.events.append(found)

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        """Return the next message, None if there is none in time."""
        end = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            if not select.select([self.reading], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            block = os.read(self.reading, 1 << 16)
            assert block, "Chromium has ended"
            self.buffer += block
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def show(self, page: Path, *, width: int, dark: bool, picture: Path) -> Seen:
        """Open a page in a window of `width` CSS pixels, light or dark; write a picture of all of it."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        loaded = {"name": "load", "loaderId": self.call("Page.navigate", url=page.as_uri())["loaderId"]}
        while not any(loaded.items() <= event["params"].items() for event in self.events):
            event = self._receive(ANSWER_SECONDS)
            assert event is not None, f"{page}: not loaded in {ANSWER_SECONDS} s"
            self.events.append(event)
        while event := self._receive(SETTLE_SECONDS):
            self.events.append(event)
        seen = Seen()
        for event in self.events:
            if event["method"] in SPOKEN:
                seen.messages.append(json.dumps(event["params"], ensure_ascii=False))
            elif event["method"] == "Network.requestWillBeSent":
                seen.requests.append(event["params"]["request"]["url"])
        seen.requests.remove(page.as_uri())
        looked = self.call("Runtime.evaluate", expression=LOOK.read_text(encoding="utf-8"), returnByValue=True)
        assert "exceptionDetails" not in looked, looked
        seen.look = looked["result"]["value"]
        drawn = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        picture.write_bytes(base64.b64decode(drawn["data"]))
        return seen


@contextmanager
def browsing() -> Iterator[Browser]:
    """Start Chromium; end it and remove its profile afterwards."""
    command = ["chromium", "--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    their_end, writing = os.pipe()
    reading, their_other_end = os.pipe()

    def wire() -> None:  # Chromium reads from descriptor 3 and writes to 4
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (their_end, their_other_end)]
        for end, number in zip(ends, (3, 4), strict=True):
            os.dup2(end, number)

    with tempfile.TemporaryDirectory(prefix="cmbert-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"],
            preexec_fn=wire,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_end)
        os.close(their_other_end)
        try:
            browser = Browser(reading, writing)
            yield browser
            browser.session = {}
            browser.call("Browser.close")
            process.wait(ANSWER_SECONDS)
        finally:
            process.kill()
            process.wait()
            os.close(reading)
            os.close(writing)
