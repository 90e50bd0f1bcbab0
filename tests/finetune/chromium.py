"""A headless Chromium, spoken to over its debugging pipe."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# what a browser asks the network for itself is no page's request; it is not asked for here either
_OPTIONS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run"
_OPTIONS += " --disable-background-networking --disable-component-update --disable-sync --remote-debugging-pipe"


class Tab:
    """One page: its requests, what its console said, and commands of the DevTools protocol."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._bytes, self._number, self._session = read, write, b"", 0, ""
        self.requests: list[str] = []
        self.said: list[str] = []
        self.loaded = 0
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command. Raises RuntimeError for one that is refused."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return dict(found["result"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._bytes:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("Chromium has ended")
            self._bytes += part
        raw, _, self._bytes = self._bytes.partition(b"\0")
        found: dict[str, Any] = json.loads(raw)
        method, parameters = found.get("method"), found.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.said.append(parameters["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.said.append(str(parameters["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(parameters["exceptionDetails"]))
        elif method == "Page.loadEventFired":
            self.loaded += 1
        return found

    def open(self, file: Path) -> None:
        before = self.loaded
        self("Page.navigate", url=file.resolve().as_uri())
        while self.loaded == before:
            self._next()

    def look(self, width: int = 1200, dark: bool = False, media: str = "") -> None:
        """As a screen of this width, or as paper."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def value(self, expression: str) -> Any:
        """Of an expression in the page, which the page's own policy does not keep from running."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def picture(self, file: Path) -> None:
        found = self("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def tab(profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, with its profile in an empty folder."""
    assert FOUND is not None
    down, up = os.pipe(), os.pipe()
    # the browser reads from 3 and writes to 4, whatever numbers the pipes have here
    link = f'exec 3<&{down[0]} 4>&{up[1]}; exec "$0" "$@"'
    command = ["/bin/bash", "-c", link, FOUND, *_OPTIONS.split(), f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(down[0], up[1]), **quiet)
    os.close(down[0])
    os.close(up[1])
    try:
        yield Tab(up[0], down[1])
    finally:
        process.kill()
        process.wait()
        os.close(up[0])
        os.close(down[1])
