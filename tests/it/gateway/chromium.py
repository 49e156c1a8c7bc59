"""A real browser for a test: reads orders as lines of JSON, has Chromium carry them out over its debugging pipe, and answers
each with a line. Needs nothing but Python; the pipe speaks NUL-terminated JSON on descriptors 3 and 4."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = 30.0


class Browser:
    def __init__(self, program, home):
        to_browser, self.writing = os.pipe()
        self.reading, from_browser = os.pipe()
        # Out of the way of the two numbers that Chromium wants.
        ours = [os.dup(to_browser), os.dup(from_browser)]

        def place():
            high = [os.dup2(fd, 100 + at) for at, fd in enumerate(ours)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        arguments = [
            program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--hide-scrollbars",
            "--remote-debugging-pipe", f"--user-data-dir={home}", "about:blank",
        ]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=place, pass_fds=(3, 4))
        for fd in [to_browser, from_browser, *ours]:
            os.close(fd)
        self.number = 0
        self.held = b""
        self.errors = []
        target = self.call("Target.createTarget", {"url": "about:blank"}, None)["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True}, None)
        self.session = attached["sessionId"]
        for domain in ["Page", "Runtime", "Log"]:
            self.call(f"{domain}.enable", {})

    def message(self):
        while b"\0" not in self.held:
            read = os.read(self.reading, 1 << 16)
            if not read:
                raise SystemExit("chromium has ended")
            self.held += read
        one, self.held = self.held.split(b"\0", 1)
        return json.loads(one)

    def call(self, method, parameters, session="own"):
        self.number += 1
        call = {"id": self.number, "method": method, "params": parameters}
        if session is not None:
            call["sessionId"] = self.session
        os.write(self.writing, json.dumps(call).encode() + b"\0")
        while True:
            message = self.message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.note(message)

    def note(self, message):
        about = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        if message.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        if message.get("method") == "Page.javascriptDialogOpening":
            self.errors.append("a dialog was opened: " + about["message"])

    def evaluate(self, expression):
        answer = self.call("Runtime.evaluate", {"expression": expression, "returnByValue": True, "awaitPromise": True})
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "it throws"))
        return answer["result"].get("value")

    def key(self, key):
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        if key == "Enter":
            about["text"] = "\r"
        self.call("Input.dispatchKeyEvent", {"type": "keyDown", **about})
        self.call("Input.dispatchKeyEvent", {"type": "keyUp", **about})

    def carry_out(self, order):
        (what, argument), = order.items()
        if what == "open":
            self.call("Page.navigate", {"url": argument})
        elif what == "evaluate":
            return self.evaluate(argument)
        elif what == "wait":
            begin = time.monotonic()
            # What is not there yet is not true yet.
            while not self.evaluate(f"(() => {{ try {{ return Boolean({argument}) }} catch {{ return false }} }})()"):
                if time.monotonic() - begin > PATIENCE:
                    raise RuntimeError(f"waited for {argument}; the page says: {self.evaluate('document.body.innerText')}")
                time.sleep(0.02)
        elif what == "click":
            box = self.evaluate(f"""(() => {{
                const element = document.querySelector({json.dumps(argument)});
                element.scrollIntoView({{ block: "center" }});
                const box = element.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()""")
            for kind in ["mousePressed", "mouseReleased"]:
                self.call("Input.dispatchMouseEvent", {
                    "type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1})
        elif what == "key":
            self.key(argument)
        elif what == "type":
            self.call("Input.insertText", {"text": argument})
        elif what == "look":
            width, height, scheme = argument
            self.call("Emulation.setDeviceMetricsOverride", {
                "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
            self.call("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        elif what == "screenshot":
            picture = self.call("Page.captureScreenshot", {"format": "png"})["data"]
            with open(argument, "wb") as file:
                file.write(base64.b64decode(picture))
        elif what == "errors":
            self.evaluate("1")
            errors, self.errors = self.errors, []
            return errors
        else:
            raise RuntimeError(f"no such order: {what}")
        return None

    def end(self):
        try:
            self.call("Browser.close", {}, None)
            self.process.wait(10)
        except (OSError, SystemExit, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


def main():
    home = tempfile.mkdtemp(prefix="halsup-chromium-")
    browser = Browser(sys.argv[1], home)
    try:
        for line in sys.stdin:
            try:
                print(json.dumps({"ok": browser.carry_out(json.loads(line))}), flush=True)
            except RuntimeError as error:
                print(json.dumps({"error": str(error)}), flush=True)
    finally:
        browser.end()
        shutil.rmtree(home, ignore_errors=True)


main()
