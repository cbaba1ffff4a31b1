"""Chromium driven over its debugging pipe: pages opened without a network, real keys, what the page then
holds.

Messages of the DevTools protocol are JSON that ends in a zero byte, on file descriptors 3 and 4 of the
browser. No library is needed, and no port.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time

SWITCHES = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update "
    "--disable-sync --proxy-server=127.0.0.1:9 --remote-debugging-pipe --hide-scrollbars"
)
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_CODES = {"/": "Slash", "Escape": "Escape", "Enter": "Enter", "Tab": "Tab", "ArrowDown": "ArrowDown"}


def installed():
    """Where the browser is, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """A browser, of which each page has cookies, cache and storage of its own."""

    def __init__(self, folder):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
        command = [sys.executable, "-c", _START, *map(str, ends), installed(), *SWITCHES.split()]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}"],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, from_browser, *ends):
            os.close(end)
        self._buffer, self._id, self.events = b"", 0, {}

    def send(self, method, session=None, **parameters):
        """A command, and what it answers; events on the way are kept by session."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._id:
            self.events.setdefault(answer.get("sessionId"), []).append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self, timeout_s=60):
        end = time.monotonic() + timeout_s
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], max(0, end - time.monotonic()))[0], (
                "the browser does not answer"
            )
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def close(self):
        with contextlib.suppress(OSError, AssertionError):
            self.send("Browser.close")
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)


class Tab:
    """One page of a browser."""

    def __init__(self, browser, place, width=1280, height=900, dark=False):
        """place: a path, or an address"""
        self._browser = browser
        self._context = browser.send("Target.createBrowserContext")["browserContextId"]
        target = browser.send("Target.createTarget", url="about:blank", browserContextId=self._context)[
            "targetId"
        ]
        self._session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height, dark)
        self.send("Page.navigate", url=place if isinstance(place, str) else place.as_uri())
        self.wait("document.readyState === 'complete'")

    def send(self, method, **parameters):
        """A command to this page, and what it answers."""
        return self._browser.send(method, self._session, **parameters)

    def events(self, method):
        """What the browser has said of this page."""
        return [
            event["params"]
            for event in self._browser.events.get(self._session, [])
            if event["method"] == method
        ]

    @property
    def complaints(self):
        """Exceptions of its scripts, and what the console says of errors."""
        thrown = [event["exceptionDetails"] for event in self.events("Runtime.exceptionThrown")]
        return [*thrown, *(event["entry"]["text"] for event in self.events("Log.entryAdded"))]

    @property
    def requests(self):
        """URLs that it asked for."""
        return [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]

    def downloads_to(self, folder):
        behavior = {"behavior": "allow", "downloadPath": str(folder), "browserContextId": self._context}
        self._browser.send("Browser.setDownloadBehavior", **behavior)

    def js(self, expression):
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression, timeout_s=20):
        """Until an expression is true."""
        end = time.monotonic() + timeout_s
        while not self.js(expression):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)

    def press(self, *keys):
        """Keys on the keyboard, one after the other."""
        for key in keys:
            code = _CODES.get(key, f"Key{key.upper()}")
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            known = {
                "key": key,
                "code": code,
                "windowsVirtualKeyCode": {"Enter": 13, "Escape": 27, "Tab": 9}.get(key, 0),
            }
            self.send("Input.dispatchKeyEvent", type="keyDown", **known, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **known)
        self.frame()

    def type(self, text):
        """Text into what has the focus."""
        self.send("Input.insertText", text=text)
        self.frame()

    def click(self, selector):
        """The mouse on the middle of an element, which is scrolled into view."""
        at = "(e => { e.scrollIntoView({ block: 'nearest' }); const r = e.getBoundingClientRect(); "
        at += "return [r.x + r.width / 2, r.y + r.height / 2]; })"
        x, y = self.js(f"{at}(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frame()

    def drag(self, selector, start, end):
        """The mouse pressed at one place of an element and released at another, each (across, down) of 1."""
        box = f"(r => [r.x, r.y, r.width, r.height])(document.querySelector({json.dumps(selector)})"
        x, y, width, height = self.js(f"{box}.getBoundingClientRect())")
        places = [(x + width * across, y + height * down) for across, down in (start, end)]
        steps = [("mousePressed", places[0]), ("mouseMoved", places[1]), ("mouseReleased", places[1])]
        for kind, (across, down) in steps:
            self.send("Input.dispatchMouseEvent", type=kind, x=across, y=down, button="left", clickCount=1)
        self.frame()

    def frame(self):
        """Until the page has been drawn again."""
        self.js("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def resize(self, width, height, dark=False):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path, whole=False):
        """A PNG of what is seen, or of the whole page."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        self._browser.send("Target.disposeBrowserContext", browserContextId=self._context)
