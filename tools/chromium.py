"""Open pages in a headless Chromium over its own pipe: no driver, no port, nothing to install besides the browser.

    python tools/chromium.py _docs pictures/         a picture of every page of a built site, to be looked at
    python tools/chromium.py _docs pictures/ 390     the same as on a telephone of that width
"""
import base64
import fcntl
import functools
import http.server
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe""".split()


def executable():
    "The browser's path, or None where none is installed."
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    "One tab of a headless browser; `with Chromium() as tab: tab.open(url)`."
    def __init__(self, width=1300, height=1000):
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        (browser_in, self.out), (self.inp, browser_out) = os.pipe(), os.pipe()

        def wire(): # the browser reads commands from descriptor 3 and writes answers to 4
            a, b = (fcntl.fcntl(d, fcntl.F_DUPFD, 10) for d in (browser_in, browser_out)) # out of the way of 3 and 4
            os.dup2(a, 3), os.dup2(b, 4)

        self.process = subprocess.Popen(
            [executable(), *FLAGS, f"--user-data-dir={self.profile.name}", f"--window-size={width},{height}"],
            preexec_fn=wire, close_fds=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(browser_in), os.close(browser_out)
        self.n, self.buffer, self.events, self.session = 0, b"", [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]: self.send(f"{domain}.enable")

    def __enter__(self): return self
    def __exit__(self, *_): self.close()

    def close(self):
        "End the browser and forget its profile."
        for descriptor in (self.out, self.inp): os.close(descriptor)
        self.process.terminate()
        try: self.process.wait(10)
        except subprocess.TimeoutExpired: self.process.kill()
        self.profile.cleanup()

    def receive(self, deadline):
        "The browser's next message."
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.inp], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self.inp, 1 << 16) if ready else b""
            if not chunk: raise TimeoutError("the browser did not answer in time, or ended")
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def send(self, method, timeout=30, **params):
        "Call `method` of the DevTools protocol; its result. Events that come meanwhile are kept in `events`."
        self.n += 1
        call = {"id": self.n, "method": method, "params": params}
        if self.session: call["sessionId"] = self.session
        os.write(self.out, json.dumps(call).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            message = self.receive(deadline)
            if message.get("id") == self.n:
                if "error" in message: raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression, timeout=30):
        "The value of a JavaScript expression in the page; a promise is waited for."
        found = self.send("Runtime.evaluate", timeout, expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found: raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def until(self, expression, timeout=10):
        "Wait for a JavaScript expression to become true; whether it did."
        deadline = time.monotonic() + timeout
        while not (done := self.evaluate(expression)) and time.monotonic() < deadline: time.sleep(.05)
        return bool(done)

    def open(self, url, settle=.2):
        "Load `url` and let its scripts come to rest."
        self.events.clear()
        self.send("Page.navigate", url=url)
        self.until("document.readyState == 'complete' && location.href != 'about:blank'", 20)
        self.evaluate("document.fonts.ready.then(() => true)")
        time.sleep(settle)

    def resize(self, width, height=844):
        "Show pages as a window of another width does; a narrow one as on a telephone."
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 768)

    def press(self, key):
        "Press a key, by its name, and let it go."
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("rawKeyDown", "char", "keyUp"):
            text = {"text": "\r"} if kind == "char" and key == "Enter" else {}
            if kind == "char" and not text: continue
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def complaints(self):
        "What the page's console shows as an error or a warning, and what could not be loaded, since `open`."
        self.evaluate("1") # collects what is under way
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return [what for what in found if not what.endswith("/favicon.ico")] # asked for by the browser, not by the page

    def picture(self, path, whole=True):
        "Save a PNG of the page, of its whole length or of the window."
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        data = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **({"clip": clip} if whole else {}))
        Path(path).write_bytes(base64.b64decode(data["data"]))


class Served:
    "A folder served at `url` for the length of a `with` block: search and fonts need http."
    def __init__(self, folder):
        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_): pass
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def main(site, out, width=None):
    "Save a picture of every page of `site` in `out`, in a window of a width in pixels."
    Path(out).mkdir(parents=True, exist_ok=True)
    with Served(site) as served, Chromium() as tab:
        if width: tab.resize(int(width))
        for page in sorted(Path(site).glob("*.html")):
            tab.open(f"{served.url}/{page.name}")
            tab.picture(Path(out) / f"{page.stem}.png")
            print(page.name, *tab.complaints(), sep="\n  ")


if __name__ == "__main__": main(*sys.argv[1:])
