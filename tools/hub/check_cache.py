#!/usr/bin/env python3
"""Checks that `mgm models pull` and the Python package huggingface_hub use each other's cache.

usage: check_cache.py PATH-OF-MGM        (needs `pip install huggingface_hub`; no network: the hub is a server in this script)

A repository of random files is served from 127.0.0.1 over the hub's routes. One side downloads it; then the other one must find every
file there and ask for none. Both orders are tried, then an interrupted download is taken up.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPOSITORY = "org/model"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RANDOM = random.Random(1)
FILES = {
    "config.json": b'{"architectures": ["MGM"]}',
    "sub/folder/notes.txt": b"deep",
    "model-00001-of-00002.safetensors": RANDOM.randbytes(3_000_000),
    "model-00002-of-00002.safetensors": RANDOM.randbytes(70_000),
    "model.safetensors.index.json": b"{}",
}


def is_large(name):
    return name.endswith(".safetensors")


def digits(name):
    content = FILES[name]
    if is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def described(name):
    size = len(FILES[name])
    entry = {"size": size}
    if is_large(name):
        entry["lfs"] = {"sha256": digits(name), "oid": digits(name), "size": size, "pointerSize": 135}
    return entry


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    downloads = []
    break_after = None

    def log_message(self, *arguments):
        pass

    def answer(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            limit = Hub.break_after
            if limit is not None and len(body) > limit:
                self.wfile.write(body[:limit])
                self.close_connection = True
            else:
                self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            tree = [
                {"type": "file", "path": name, "oid": COMMIT if is_large(name) else digits(name), **described(name)}
                for name in FILES
            ]
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())
        if path.startswith(f"/api/models/{REPOSITORY}"):
            siblings = [
                {"rfilename": name, "blobId": COMMIT if is_large(name) else digits(name), **described(name)} for name in FILES
            ]
            info = {"id": REPOSITORY, "sha": COMMIT, "private": False, "tags": [], "downloads": 0, "siblings": siblings}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        start = f"/{REPOSITORY}/resolve/"
        if path.startswith(start):
            name = path[len(start) :].split("/", 1)[1]
            if name not in FILES:
                return self.answer(404, {"X-Error-Code": "EntryNotFound"})
            facts = {"X-Repo-Commit": COMMIT, "ETag": f'"{digits(name)}"'}
            if is_large(name):
                facts = {
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Etag": f'"{digits(name)}"',
                    "X-Linked-Size": len(FILES[name]),
                    # Another host name, so another origin.
                    "Location": f"http://localhost:{self.server.server_address[1]}/store/{name}",
                }
                return self.answer(302, facts)
            return self.file(name, facts)
        if path.startswith("/store/"):
            return self.file(path[len("/store/") :], {})
        return self.answer(404, {})

    def file(self, name, headers):
        content = FILES[name]
        if self.command == "GET":
            Hub.downloads.append((name, self.headers.get("Range")))
        requested = self.headers.get("Range")
        if requested:
            first = int(requested.removeprefix("bytes=").split("-")[0])
            headers = {**headers, "Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
            return self.answer(206, headers, content[first:])
        return self.answer(200, headers, content)


def by_mgm(program, environment):
    done = subprocess.run([program, "models", "pull", REPOSITORY], env=environment, capture_output=True, text=True)
    print("   ", done.stderr.strip().replace("\n", "\n    "))
    return done.returncode, done.stdout.strip()


def by_python(environment):
    code = f"import huggingface_hub; print(huggingface_hub.snapshot_download({REPOSITORY!r}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr)
    return done.returncode, done.stdout.strip()


def tree(cache):
    """What both sides must agree on: blobs, references and links."""
    folder = Path(cache) / "models--org--model"
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = str(path.relative_to(folder))
        if relative.startswith("trees"):
            continue  # huggingface_hub's copy of listings
        if path.is_symlink():
            found[relative] = "-> " + os.readlink(path)
        elif path.is_file():
            found[relative] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check(condition, what):
    print(("ok      " if condition else "FAILED  ") + what)
    if not condition:
        sys.exit(1)


def main():
    program = str(Path(sys.argv[1]).resolve())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        def environment(name, **more):
            kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
            address = f"http://127.0.0.1:{server.server_address[1]}"
            return kept | {"HF_ENDPOINT": address, "HF_HOME": f"{folder}/{name}", "HF_HUB_DISABLE_XET": "1", **more}

        (code, ours), downloads = by_mgm(program, environment("ours")), len(Hub.downloads)
        check(code == 0 and downloads == len(FILES), f"mgm downloads {downloads} files")
        code, theirs = by_python(environment("ours"))
        check(code == 0 and theirs == ours, "huggingface_hub finds the same snapshot")
        check(len(Hub.downloads) == downloads, "and downloads nothing")
        code, theirs = by_python(environment("ours", HF_HUB_OFFLINE="1"))
        check(code == 0 and theirs == ours, "offline too")

        Hub.downloads.clear()
        code, theirs = by_python(environment("theirs"))
        downloads = len(Hub.downloads)
        check(code == 0 and downloads == len(FILES), f"huggingface_hub downloads {downloads} files")
        code, ours = by_mgm(program, environment("theirs"))
        check(code == 0 and theirs == ours, "mgm finds the same snapshot")
        check(len(Hub.downloads) == downloads, "and downloads nothing")
        code, ours = by_mgm(program, environment("theirs", HF_HUB_OFFLINE="1"))
        check(code == 0 and theirs == ours, "offline too")
        ours, theirs = tree(f"{folder}/ours/hub"), tree(f"{folder}/theirs/hub")
        check(ours == theirs, f"both caches hold the same {len(ours)} blobs, references and links")

        Hub.downloads.clear()
        Hub.break_after = 500_000
        code, ours = by_mgm(program, environment("broken"))
        Hub.break_after = None
        ranges = [requested for name, requested in Hub.downloads if name == "model-00001-of-00002.safetensors"]
        check(code == 0 and len(ranges) > 1 and ranges[1], f"mgm takes a broken download up: {ranges}")
        check(tree(f"{folder}/broken/hub") == theirs, "and the cache is the same")
        listed = subprocess.run([program, "models", "list"], env=environment("broken"), capture_output=True, text=True).stdout
        check(REPOSITORY in listed, "mgm models list shows it")
    print("all checks passed")


if __name__ == "__main__":
    main()
