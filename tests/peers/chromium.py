"""A browser: Chromium from Debian without a window, over its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

TIMEOUT = 120
# How long one question may take before it is asked again.
RETRY_AFTER = 5

# Nothing but this machine, whatever a page or the browser itself asks for.
OPTIONS = [
    "--headless=new",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--force-color-profile=srgb",
    "--ignore-certificate-errors",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-proxy-server",
    "--password-store=basic",
    "--window-size=1280,1600",
]


class BrowserError(Exception):
    """It does not do what it should."""


class NoAnswer(BrowserError):
    """It does not say anything."""


class Browser:
    """One with one page. It ends when the pipes to it close, so with this script at the latest."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="nodepass-chromium-")
        # It wants them as 3 and 4.
        down, up = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (down[0], up[1])]

        def place():
            os.dup2(theirs[0], 3)
            os.dup2(theirs[1], 4)

        # Its sandbox does not start for root.
        more = ["--no-sandbox"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen(
            ["chromium", *OPTIONS, *more, f"--user-data-dir={self.folder}", "about:blank"],
            pass_fds=(3, 4),
            preexec_fn=place,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": self.folder},
        )
        for fd in (down[0], up[1], *theirs):
            os.close(fd)
        self.commands, self.answers = down[1], up[0]
        self.buffer = b""
        self.command_id = 0
        self.session = None
        self.requests = []
        self.complaints = []
        self.loaded_count = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        os.close(self.commands)
        os.close(self.answers)
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        # Its helpers end a little later, and write until then.
        deadline = time.monotonic() + TIMEOUT
        while os.path.exists(self.folder) and time.monotonic() < deadline:
            shutil.rmtree(self.folder, ignore_errors=True)
            time.sleep(0.05)

    def call(self, method, timeout=TIMEOUT, **parameters):
        """Has it do something, and takes down what happens meanwhile."""
        self.command_id += 1
        message = {"id": self.command_id, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        deadline = time.monotonic() + timeout
        while True:
            answer = self._receive(deadline)
            if answer.get("id") != self.command_id:
                self._take(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']}")
            else:
                return answer["result"]

    def evaluate(self, expression, timeout=TIMEOUT):
        """The value of JavaScript on the page."""
        answer = self.call(
            "Runtime.evaluate", timeout=timeout, expression=expression, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression):
        """The first value of JavaScript on the page that means yes."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            value = self._ask(expression)
            if value:
                return value
            if time.monotonic() > deadline:
                text = self.evaluate("document.body.innerText")
                raise BrowserError(f"never: {expression}; the page says {text!r}")
            time.sleep(0.05)

    def click_until(self, selector, expression):
        """Presses the first element that matches until the expression means yes: a page that is
        still busy with itself may forget that it was pressed."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if not self._ask(expression):
                self.click(selector)
            again_at = time.monotonic() + RETRY_AFTER
            while time.monotonic() < again_at:
                value = self._ask(expression)
                if value:
                    return value
                time.sleep(0.05)
        raise BrowserError(f"pressed {selector}, and never: {expression}")

    def _ask(self, expression):
        """The value of JavaScript on the page; none when the answer is lost, which may be while the
        page changes."""
        try:
            return self.evaluate(expression, RETRY_AFTER)
        except NoAnswer:
            return None

    def open(self, url):
        """Goes to another page. Until that is there, nothing is asked of the one before: when it
        goes away, the answer may be lost."""
        count = self.loaded_count
        failure = self.call("Page.navigate", url=url).get("errorText")
        if failure:
            raise BrowserError(f"{url}: {failure}")
        deadline = time.monotonic() + TIMEOUT
        while self.loaded_count == count:
            self._take(self._receive(deadline))
        # That may have been the one before.
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState == 'complete'")

    def click(self, selector):
        """Presses the first element that matches, once there is one, wherever it is by then."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{element}")
        self._ask(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self._ask(f"{element}.click()")

    def write(self, selector, text):
        """Writes into the first element that matches, once there is one."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{element}")
        self.evaluate(f"{element}.focus()")
        self.call("Input.insertText", text=text)

    def take_picture(self, path):
        """Of what the window shows, as PNG."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _receive(self, deadline):
        while b"\0" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.answers], [], [], left)[0]:
                raise NoAnswer("no answer")
            data = os.read(self.answers, 1 << 20)
            if not data:
                raise BrowserError("the browser has ended")
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def _take(self, event):
        parameters = event.get("params")
        match event.get("method"):
            case "Page.loadEventFired":
                self.loaded_count += 1
            case "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(parameters["exceptionDetails"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.complaints.append(parameters["args"])
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                self.complaints.append(parameters["entry"])
