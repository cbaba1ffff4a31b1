"""A page with the widget in it and FeatureBrowser behind it, without a notebook: what the module sends goes
over the loopback device to the widget, and what this sends comes back, as over a notebook's comm."""

import base64
import contextlib
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from saelens_lite.analyze.browse.module import widget_module

PAGE = """<!doctype html><meta charset="utf-8"><title>notebook</title><div id="cell"></div>
<script type="module">
import widget from "./widget.js";
let hear;
const model = {
  on: (event, callback) => { if (event === "msg:custom") hear = callback; },
  off() {},
  send: (content) => fetch("say", { method: "POST", body: JSON.stringify(content) }),
};
widget.render({ model, el: document.getElementById("cell") });
for (;;) {
  for (const [content, buffers] of await (await fetch("hear")).json()) {
    const bytes = buffers.map((of) => Uint8Array.from(atob(of), (c) => c.charCodeAt(0)).buffer);
    hear(content, bytes.map((of) => new DataView(of)));
  }
}
</script>"""


@contextlib.contextmanager
def widget_page(browser):
    """The address of the page of a FeatureBrowser."""
    messages = queue.Queue()
    widget = browser.widget
    widget.send = lambda content, buffers=None: messages.put((content, buffers or []))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path == "/hear":
                found = []
                with contextlib.suppress(queue.Empty):
                    found.append(messages.get(timeout=0.5))
                    while True:
                        found.append(messages.get_nowait())
                coded = [(content, [base64.b64encode(of).decode() for of in bs]) for content, bs in found]
                self._send("application/json", json.dumps(coded))
            elif self.path == "/widget.js":
                self._send("text/javascript", widget_module())
            else:
                self._send("text/html", PAGE if self.path == "/" else "")

        def do_POST(self):
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            widget._handle_custom_msg(content, [])
            self._send("application/json", "{}")

        def _send(self, kind, text):
            content = text.encode("utf-8", "surrogatepass")
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # a page that is closed
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
