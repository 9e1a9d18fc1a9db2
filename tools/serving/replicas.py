"""Two replicas behind nginx with deploy/nginx.conf, one of them killed under load. Everything on loopback.

    python tools/serving/replicas.py target/release/mgm

Shows: requests spread over both; a conversation stays on one; a killed replica fails only the requests that it had begun, and those
in a way that a client may retry; all later requests are answered; the replica is used again when it is back; a replica that is told to
end (SIGTERM) fails nothing. Needs nginx and Python 3.9.
"""

import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from load import first_url, wait_until_ready

ROOT = pathlib.Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Replica:
    def __init__(self, program, port):
        self.program, self.port = program, port
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.program, "serve", "--port", str(self.port), "--max-queue", "256"],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until_ready(first_url(self.process))

    def end(self, number):
        self.process.send_signal(number)
        self.process.wait(60)


class Proxy:
    """nginx with the shipped configuration, its ports replaced, and a log of which replica answered what."""

    def __init__(self, folder, replicas):
        self.port, self.log = free_port(), folder / "access.log"
        text = (ROOT / "deploy/nginx.conf").read_text()
        for shipped, ours in [("listen 8080;", f"listen 127.0.0.1:{self.port};"),
                              ("127.0.0.1:8081", f"127.0.0.1:{replicas[0].port}"), ("127.0.0.1:8082", f"127.0.0.1:{replicas[1].port}")]:
            assert shipped in text, shipped
            text = text.replace(shipped, ours)
        (folder / "mgm.conf").write_text(text)
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\nhttp {{\n{temporary}"
            f"log_format replicas '$http_x_conversation|$upstream_addr|$status';\naccess_log {self.log} replicas;\n"
            f"include {folder}/mgm.conf;\n}}\n")
        self.process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")])
        wait_until_ready(f"http://127.0.0.1:{self.port}")

    def upstreams(self):
        """Conversation to the ports of the replicas that were tried, in order, of its last request."""
        found = {}
        for line in self.log.read_text().splitlines():
            conversation, tried, _ = line.split("|")
            found[conversation] = [int(port) for port in re.findall(r":(\d+)", tried)]
        return found


def ask(port, conversation, tokens):
    """One streamed request. Returns (outcome, text): done, refused (a status), cut (the connection ended within the answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    text = ""
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps({
            "model": MODEL, "stream": True, "max_tokens": tokens, "temperature": 2, "top_k": 4000, "seed": 1,
            "messages": [{"role": "user", "content": f"Tell a very long story, number {conversation}."}],
        }), {"content-type": "application/json", "x-conversation": conversation})
        response = connection.getresponse()
        if response.status != 200:
            return ("refused", response.status), response.read(200).decode()
        for line in response:
            if line.strip() == b"data: [DONE]":
                return ("done", 200), text
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                if "error" in event:
                    return ("ended", event["error"].get("code")), text
                text += "".join(choice["delta"].get("content") or "" for choice in event["choices"])
        return ("cut", None), text
    except (OSError, http.client.HTTPException) as error:
        return ("cut", type(error).__name__), text
    finally:
        connection.close()


class Load:
    """Clients that ask one question after another until told to stop."""

    def __init__(self, port, name, clients=12):
        self.port, self.name, self.stopped, self.lock, self.log = port, name, False, threading.Lock(), []
        self.threads = [threading.Thread(target=self.client, args=(number,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, number):
        count = 0
        while not self.stopped:
            conversation, begun = f"{self.name}-{number}-{count}", time.monotonic()
            outcome, text = ask(self.port, conversation, 24)
            with self.lock:
                self.log.append((conversation, begun, time.monotonic(), outcome, text))
            count += 1

    def stop(self):
        self.stopped = True
        for thread in self.threads:
            thread.join()
        return self.log


def model_name(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/v1/models")
    return json.loads(connection.getresponse().read())["data"][0]["id"]


def main():
    global MODEL
    program = sys.argv[1]
    folder = pathlib.Path(tempfile.mkdtemp())
    replicas, proxy = [], None
    try:
        for _ in range(2):
            replicas.append(Replica(program, free_port()))
        proxy = Proxy(folder, replicas)
        MODEL = model_name(proxy.port)
        passed = [spread_and_sticky(proxy, replicas), killed(proxy, replicas), back_again(proxy, replicas), told_to_end(proxy, replicas)]
        print(f"{len(passed)} passed, 0 failed")
    finally:
        if proxy:
            proxy.process.terminate()
            proxy.process.wait(30)
        for replica in replicas:
            replica.process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def settled(proxy, conversations):
    """The replicas of these conversations: the log is written a moment after a request ends."""
    deadline = time.monotonic() + 30
    while True:
        found = proxy.upstreams()
        missing = [name for name in conversations if name not in found]
        if not missing:
            return found
        assert time.monotonic() < deadline, f"the log has nothing of {missing[:5]}"
        time.sleep(0.05)


def spread_and_sticky(proxy, replicas):
    for number in range(24):
        outcome, _ = ask(proxy.port, f"spread-{number}", 2)
        assert outcome == ("done", 200), outcome
    names = [f"spread-{number}" for number in range(24)]
    found = settled(proxy, names)
    used = {tuple(found[name]) for name in names}
    assert used == {(replica.port,) for replica in replicas}, used
    ports = set()
    for _ in range(6):
        ask(proxy.port, "one conversation", 2)
        time.sleep(0.2)  # the line of this request, not of the one before
        ports.add(tuple(settled(proxy, ["one conversation"])["one conversation"]))
    assert len(ports) == 1, ports
    print("requests spread over both replicas, a conversation stays on one")


def killed(proxy, replicas):
    load = Load(proxy.port, "killed")
    time.sleep(4)
    moment = time.monotonic()
    replicas[0].end(signal.SIGKILL)
    time.sleep(8)
    log = load.stop()
    upstreams = settled(proxy, [entry[0] for entry in log])
    failed = [entry for entry in log if entry[3] != ("done", 200)]
    in_flight = [entry for entry in log if entry[1] < moment < entry[2]]
    for conversation, begun, ended, outcome, _ in failed:
        assert upstreams[conversation][0] == replicas[0].port, (conversation, upstreams[conversation], outcome)
        assert begun < moment + 1, f"{conversation} began {begun - moment:.1f} s after the replica was killed and failed: {outcome}"
        assert outcome[0] == "cut" or outcome[1] in (502, 503, 504), outcome
    after = [entry for entry in log if entry[1] > moment + 1]
    assert after and all(entry[3] == ("done", 200) for entry in after)
    elsewhere = [entry for entry in in_flight if upstreams[entry[0]] == [replicas[1].port]]
    assert elsewhere and all(entry[3] == ("done", 200) for entry in elsewhere)
    print(f"one replica killed: {len(log)} requests, {len(in_flight)} in flight, {len(failed)} of the killed replica's failed "
          f"({', '.join(sorted({str(entry[3]) for entry in failed}))}), all {len(after)} later ones answered")


def back_again(proxy, replicas):
    replicas[0].start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        number = time.monotonic_ns()
        outcome, _ = ask(proxy.port, f"back-{number}", 2)
        assert outcome == ("done", 200), outcome
        if settled(proxy, [f"back-{number}"])[f"back-{number}"] == [replicas[0].port]:
            print("a replica that is back is used again")
            return
    raise AssertionError("the replica that is back got no request")


def told_to_end(proxy, replicas):
    load = Load(proxy.port, "ended")
    time.sleep(3)
    replicas[1].end(signal.SIGTERM)
    time.sleep(3)
    log = load.stop()
    failed = [entry for entry in log if entry[3] != ("done", 200)]
    assert not failed, failed[:3]
    assert replicas[1].process.returncode == 0, replicas[1].process.returncode
    print(f"one replica told to end: {len(log)} requests, none failed")


if __name__ == "__main__":
    main()
