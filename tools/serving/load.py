"""Load on a running server, and what it does with it. Prints Markdown tables; needs nothing but Python 3.9.

    python tools/serving/load.py --program target/release/mgm [--only PART,PART] [--seconds 120] [--json FILE]
    python tools/serving/load.py --url http://127.0.0.1:8080

With --program it starts `mgm serve` on a free port and ends it. Parts:

  throughput   tokens per second of 1 and of 8 clients at a time, the same requests in turn
  mixed        32 clients, text and picture questions of mixed length: errors, time to first token, fairness
  picture      first and second question about the same picture
  cut          100 clients that leave in the middle of an answer: how long until their places are free
  memory       resident memory over 1,000 requests
"""

import argparse
import base64
import http.client
import json
import random
import re
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import zlib

WORDS = ("river window paper green seven mountain clock garden silver travel market winter simple engine letter "
         "ocean copper basket yellow bridge candle forest planet rocket kitchen").split()


def png(seed, side=256):
    """A PNG picture that no other seed gives: coloured rectangles on a background."""
    rng = random.Random(seed)
    colour = lambda: bytes(rng.randrange(256) for _ in range(3))
    rows = [bytearray(colour() * side) for _ in range(side)]
    for _ in range(6):
        left, top = rng.randrange(side), rng.randrange(side)
        right, bottom = min(side, left + rng.randrange(20, 120)), min(side, top + rng.randrange(20, 120))
        paint = colour()
        for row in rows[top:bottom]:
            row[3 * left:3 * right] = paint * (right - left)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture_part(seed):
    url = "data:image/png;base64," + base64.b64encode(png(seed)).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def body(content, max_tokens, **more):
    return {"model": "default", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": content}], **more}


class Answer:
    """What came back of one streamed request."""

    def __init__(self):
        self.first = self.total = None
        self.tokens = 0
        self.text = ""
        self.error = None


class Server:
    """Where the server is, and requests to it."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        self.host, self.port = parts.hostname, parts.port or 80
        self.model = json.loads(self.get("/v1/models"))["data"][0]["id"]

    def get(self, path):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def metric(self, name, **labels):
        """Sum of the samples of a metric that carry these labels."""
        total, found = 0.0, False
        for line in self.get("/metrics").splitlines():
            match = re.match(rf"{name}(?:\{{(.*)\}})? ([^ ]+)$", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total, found = total + float(match[2]), True
        if not found:
            raise SystemExit(f"/metrics has no {name}")
        return total

    def stream(self, request, leave_after=None, timeout=600):
        """Sends a chat request and reads its stream; with `leave_after` closes the connection after so many pieces of text."""
        answer, started = Answer(), time.perf_counter()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps({**request, "model": self.model}),
                               {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                answer.error = f"{response.status}: {response.read(300)!r}"
                return answer
            pieces, done = 0, False
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    done = True
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    answer.error = event["error"]["message"]
                    return answer
                for choice in event["choices"]:
                    if choice["delta"].get("content"):
                        answer.text += choice["delta"]["content"]
                        answer.first = answer.first or time.perf_counter() - started
                        pieces += 1
                if event.get("usage"):
                    answer.tokens = event["usage"]["completion_tokens"]
                if leave_after is not None and pieces >= leave_after:
                    return answer
            if not done:
                answer.error = "the stream broke off"
        except OSError as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            answer.total = time.perf_counter() - started
            connection.close()
        return answer


def together(jobs, clients):
    """Runs jobs (functions) with so many clients at a time; results in order of the jobs."""
    results, lock, rest = [None] * len(jobs), threading.Lock(), iter(range(len(jobs)))

    def client():
        while True:
            with lock:
                index = next(rest, None)
            if index is None:
                return
            results[index] = jobs[index]()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def sentence(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words))


def must(answers):
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        raise SystemExit(f"{len(errors)} of {len(answers)} requests failed, the first: {errors[0]}")
    return answers


def throughput(server, options):
    """Long answers of fixed length: sampled hot, so that the model does not end them early."""
    def round_of(clients, seed):
        rng = random.Random(seed)
        requests = [body("Tell a very long story about: " + sentence(rng, 8), 96, temperature=2, top_k=4000, seed=seed * 100 + n)
                    for n in range(16)]
        started = time.perf_counter()
        answers = must(together([lambda request=request: server.stream(request) for request in requests], clients))
        return sum(answer.tokens for answer in answers) / (time.perf_counter() - started)

    round_of(8, 0)
    pairs = [(round_of(1, 2 * n + 1), round_of(8, 2 * n + 2)) for n in range(options.rounds)]
    one, eight = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratios = [pair[1] / pair[0] for pair in pairs]
    print("| clients at a time | tokens per second (median) | ratio: median (smallest to largest) |\n|---|---|---|")
    print(f"| 1 | {one:.1f} | |")
    print(f"| 8 | {eight:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |\n")
    return {"one": one, "eight": eight, "ratios": ratios}


def mixed(server, options):
    """Every client asks again and again, each time one of: short text, long text, picture seen by all, picture of its own."""
    end, answers, lock = time.monotonic() + options.seconds, [], threading.Lock()

    def client(number):
        rng = random.Random(number)
        while time.monotonic() < end:
            kind = rng.choice(["short text", "long text", "known picture", "new picture"])
            if kind == "short text":
                request = body("Say something about a " + sentence(rng, 2) + ".", rng.randrange(8, 48))
            elif kind == "long text":
                request = body("Sum up: " + sentence(rng, rng.randrange(100, 400)) + ".", rng.randrange(16, 64))
            else:
                seed = rng.randrange(4) if kind == "known picture" else 1000 + rng.randrange(10**9)
                request = body([picture_part(seed), {"type": "text", "text": "What is in the picture?"}], rng.randrange(8, 48))
            answer = server.stream(request)
            with lock:
                answers.append((kind, answer))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [answer.error for _, answer in answers if answer.error]
    # An answer without any visible text has no first token to speak of.
    firsts = sorted(answer.first for _, answer in answers if answer.first)
    median, longest = statistics.median(firsts), firsts[-1]
    print(f"{options.clients} clients, {options.seconds} s, {len(answers)} requests, {len(errors)} errors, "
          f"{sum(answer.tokens for _, answer in answers) / options.seconds:.1f} tokens per second")
    print(f"\nLongest time to first token: {longest / median:.1f} times the median.\n")
    print("| requests | number | time to first token: median | 95 % | longest |\n|---|---|---|---|---|")
    rows = [("all", firsts)]
    for kind in ("short text", "long text", "known picture", "new picture"):
        rows.append((kind, sorted(answer.first for name, answer in answers if name == kind and answer.first)))
    for name, times in rows:
        print(f"| {name} | {len(times)} | {statistics.median(times):.2f} s | {times[int(0.95 * (len(times) - 1))]:.2f} s | {times[-1]:.2f} s |")
    print()
    for error in errors[:5]:
        print(f"error: {error}", file=sys.stderr)
    return {"requests": len(answers), "errors": len(errors), "median": median, "longest": longest, "ratio": longest / median}


def picture(server, options):
    def told(kind):
        return [server.metric("mgm_time_to_first_token_seconds" + end, pictures=kind) for end in ("_sum", "_count")]

    pairs, before = [], {kind: told(kind) for kind in ("new", "known")}
    for number in range(options.rounds + 1):
        part = picture_part(5000 + time.time_ns() % 10**9 + number)
        ask = lambda text: must([server.stream(body([part, {"type": "text", "text": text}], 8, temperature=0))])[0].first
        pairs.append((ask("What is in the picture?"), ask("What colour is the largest shape?")))
    pairs = pairs[1:]
    first, second = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
    hits = server.metric("mgm_vision_cache_hits_total")
    means = {}
    for kind, (seconds, count) in before.items():
        seconds_now, count_now = told(kind)
        means[kind] = (seconds_now - seconds) / (count_now - count)
    print("| question about a picture | time to first token (median) | ratio |\n|---|---|---|")
    print(f"| first | {1000 * first:.0f} ms | |\n| second | {1000 * second:.0f} ms | {ratio:.3f} |\n")
    print(f"`/metrics` counts {hits:.0f} pictures that were known; its mean time to first token: {1000 * means['new']:.0f} ms with a new picture, "
          f"{1000 * means['known']:.0f} ms with a known one, ratio {means['known'] / means['new']:.3f}.\n")
    return {"first": first, "second": second, "ratio": ratio, "metrics": means}


def cut(server, options):
    """Clients leave after two pieces of text of an answer that would be long."""
    request = lambda number: body("Tell a very long story.", 1500, temperature=2, top_k=4000, seed=number)
    left = []

    def job(number):
        answer = server.stream(request(number), leave_after=2)
        left.append(time.monotonic())
        return answer

    answers = together([lambda number=number: job(number) for number in range(100)], 100)
    errors = [answer.error for answer in answers if answer.error]
    last = max(left)
    while True:
        busy = sum(server.metric(name) for name in ("mgm_running_answers", "mgm_reading_requests", "mgm_queue_requests"))
        free = time.monotonic() - last
        if busy == 0 or free > 60:
            break
        time.sleep(0.01)
    print(f"100 clients left in the middle of an answer ({len(errors)} were refused); {free:.2f} s after the last one nothing was running.\n")
    return {"seconds": free, "errors": len(errors), "still_busy": busy}


def memory(server, options):
    print("| requests | resident memory |\n|---|---|")
    result, rng = {}, random.Random(7)
    for count in range(0, options.requests + 1, options.requests // 10):
        if count:
            jobs = []
            for _ in range(options.requests // 10):
                if rng.random() < 0.5:
                    request = body("Name a " + sentence(rng, rng.randrange(2, 60)), 12)
                else:
                    request = body([picture_part(rng.randrange(10**9)), {"type": "text", "text": "What is it?"}], 12)
                jobs.append(lambda request=request: server.stream(request))
            must(together(jobs, 8))
        result[count] = server.metric("process_resident_memory_bytes")
        print(f"| {count} | {result[count] / 1e6:.0f} MB |", flush=True)
    print()
    return result


PARTS = {"throughput": throughput, "picture": picture, "cut": cut, "mixed": mixed, "memory": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url")
    where.add_argument("--program")
    parser.add_argument("--serve", default="", help="more options for `mgm serve`")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="fail where a promise of docs/serving.md does not hold")
    options = parser.parse_args()
    process = None
    if options.program:
        process = subprocess.Popen([options.program, "serve", "--port", "0", *options.serve.split()],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        options.url = first_url(process)
    try:
        wait_until_ready(options.url)
        server, results = Server(options.url), {}
        for part in options.only.split(","):
            print(f"## {part}\n", flush=True)
            results[part] = PARTS[part](server, options)
        if options.json:
            with open(options.json, "w") as file:
                json.dump(results, file, indent=1)
        if options.check:
            check(results)
    finally:
        if process:
            process.terminate()
            process.wait(30)


def check(results):
    """What must hold on any machine, however busy; times are for reading, not for judging."""
    wrong = []
    if results.get("mixed", {}).get("errors"):
        wrong.append("errors under mixed load")
    if results.get("cut", {}).get("still_busy"):
        wrong.append("places of clients that left are still taken")
    sizes = list(results.get("memory", {}).values())
    if sizes and sizes[-1] > 1.1 * sizes[len(sizes) // 2]:
        wrong.append("resident memory keeps growing")
    if wrong:
        raise SystemExit("not held: " + "; ".join(wrong))


def first_url(process):
    """The address that the program prints when it listens."""
    found, output = threading.Event(), []

    def read(pipe):
        for line in pipe:
            output.append(line)
            if re.search(r"https?://\S+", line):
                found.set()

    for pipe in (process.stdout, process.stderr):
        threading.Thread(target=read, args=(pipe,), daemon=True).start()
    if not found.wait(120):
        process.kill()
        raise SystemExit("the server did not say where it listens:\n" + "".join(output))
    return re.search(r"https?://[^\s/]+", "".join(output))[0]


def wait_until_ready(url):
    parts = urllib.parse.urlsplit(url)
    for _ in range(600):
        try:
            connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=5)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{url} did not become ready")


if __name__ == "__main__":
    main()
