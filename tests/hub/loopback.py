"""A hub on the loopback device: the endpoints that push and pull use, with plain LFS."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


class Hub:
    """files: by repository and name; requests: (method, path, Authorization)"""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str) -> str:
        content = json.dumps(sorted((n, hashlib.sha1(c).hexdigest()) for n, c in self.repos[repo].items()))
        return hashlib.sha1(content.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, content: bytes, status: int = 200, head: bool = False, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(content)

    def _json(self, found: object, status: int = 200) -> None:
        self._answer(json.dumps(found).encode(), status, Content_Type="application/json")

    def _take(self) -> tuple[str, bytes]:
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return path, body
        return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        path, body = self._take()
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.hub.repos.setdefault(repo, {})
            self._json({"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/(.+?)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in files
            ]
            self._json({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+?)/commit/main", path):
            files = self.hub.repos[found[1]]
            for line in body.decode().splitlines():
                of = json.loads(line)
                if of["key"] == "file":
                    files[of["value"]["path"]] = base64.b64decode(of["value"]["content"])
                elif of["key"] == "lfsFile":
                    files[of["value"]["path"]] = self.hub.lfs[of["value"]["oid"]]
            oid = self.hub.commit(found[1])
            url = f"{self.hub.url}/{found[1]}/commit/{oid}"
            self._json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
        else:
            self._json({"error": f"no {path}"}, 404)

    def do_PUT(self) -> None:
        path, body = self._take()
        oid = path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.lfs[oid] = body
        self._answer(b"")

    def do_GET(self) -> None:
        path, _ = self._take()
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", path):
            self._file(*found.groups())
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/[^/]+)?", path):
            self._info(found[1])
        elif found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/[^/]+/?.*", path):
            files = self.hub.repos.get(found[1], {})
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self._json(tree)
        else:
            self._json({"error": f"no {path}"}, 404)

    do_HEAD = do_GET

    def _info(self, repo: str) -> None:
        if repo not in self.hub.repos:
            self._answer(b"{}", 404, X_Error_Code="RepoNotFound")
            return
        names = [{"rfilename": name} for name in self.hub.repos[repo]]
        self._json(
            {"id": repo, "sha": self.hub.commit(repo), "siblings": names, "private": False, "tags": []}
        )

    def _file(self, repo: str, name: str) -> None:
        content = self.hub.repos.get(repo, {}).get(name)
        if content is None:
            self._answer(b"", 404, X_Error_Code="EntryNotFound")
            return
        etag = hashlib.sha256(content).hexdigest()
        head = self.command == "HEAD"
        self._answer(content, head=head, ETag=f'"{etag}"', X_Repo_Commit=self.hub.commit(repo))
