"""An OpenAI-compatible chat server for tests, which behaves well or badly as the question asks.

The last word of the question says how: `status:429` fails once, `always:500` always, `hang`, `drop`, `html` and so
on; any other word is answered with its own text, the sample's index and the seed.
"""

import json
import socket
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Self


class Fake(ThreadingHTTPServer):
    """A chat server that does what the last word of the question says, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.attempts: Counter[str] = Counter()
        self.payloads: list[dict[str, Any]] = []
        self.times: dict[str, list[float]] = {}
        self.keys: set[str] = set()
        self.now = self.most = 0
        self.delay = 0.0  # seconds before an answer
        self.word = ""  # how every question is answered, whatever its last word
        self.one_sample = ""  # what becomes of a request for several: "refused", "denied" wordless, or one is given
        self.refuses: dict[str, str] = {}  # a part of a request -> the words it is refused with, 400
        self.dies_after = 10**9  # requests before nothing listens any more
        self.lock = Lock()

    def __enter__(self) -> Self:
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take no connection any more."""
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def text_of(payload: dict[str, Any]) -> str:
    content = payload["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def choice(text: Any, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **more}


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word = text_of(payload).split()[-1]
        with self.server.lock:
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            self.server.attempts[word] += 1
            attempt = self.server.attempts[word]
            self.server.payloads.append(payload)
            self.server.times.setdefault(word, []).append(time.monotonic())
            self.server.keys.add(self.headers.get("Authorization", ""))
            dead = sum(self.server.attempts.values()) > self.server.dies_after
        try:
            if dead:
                self.server.socket.close()
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            time.sleep(self.server.delay)
            self.behave(self.server.word or word, attempt, payload)
        finally:
            with self.server.lock:
                self.server.now -= 1

    def behave(self, word: str, attempt: int, payload: dict[str, Any]) -> None:
        good = {"choices": [choice(f"{word} {i} seed {payload['seed']}", i) for i in range(payload["n"])]}
        name, _, argument = word.partition(":")
        if self.server.one_sample:
            good["choices"] = good["choices"][:1]
        refused = next((words for part, words in self.server.refuses.items() if part in payload), "")
        if refused:
            self.send(400, {"error": {"message": refused}})
        elif payload["n"] > 1 and self.server.one_sample in ("refused", "denied"):
            words = "n > 1 is not supported" if self.server.one_sample == "refused" else "bad request"
            self.send(400, {"error": {"message": words}})
        elif name == "big" and payload["n"] > 1:
            self.send(400, {"error": {"message": "n * max_tokens exceeds the limit"}})
        elif name == "status" and attempt == 1:
            self.send(int(argument), {"error": {"message": "come back"}}, {"Retry-After": "0.3"})
        elif name == "always":
            self.send(int(argument), {"error": {"message": f"never {'x' * 999}"}}, {"Retry-After": "0.01"})
        elif name == "hang":
            time.sleep(3)
        elif name == "dribble":
            self.send(200, b" " * 20 + json.dumps(good).encode(), every_s=0.2)
        elif name == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif name == "half":  # of a surrogate pair
            self.send(200, {"choices": [choice("seven \ud83d \U0001f600")] * payload["n"]})
        elif name == "refusal":
            self.send(400, {"error": {"message": "half \ud83d a character"}})
        elif name == "html":
            self.send(200, b"<!DOCTYPE html><html>Bad gateway</html>", {"Content-Type": "text/html"})
        elif name == "body":
            self.send(200, argument.encode())
        elif name == "nothing":
            self.send(200, b"")
        elif name == "bytes":
            self.send(200, b"\xff\xfe\x00{")
        elif name == "short":
            self.send(200, {"choices": []})
        elif name == "none":
            self.send(200, {"choices": [choice(None), *good["choices"][1:]]})
        elif name == "filter":
            self.send(200, {"choices": [choice("", finish_reason="content_filter")] * payload["n"]})
        elif name == "reversed":
            self.send(200, {"choices": good["choices"][::-1]})
        elif name == "slow":
            time.sleep(0.1)
            self.send(200, good)
        elif name == "length":
            self.send(200, {"choices": [choice("cut", finish_reason="length")] * payload["n"]})
        elif name == "logprobs":
            top = [{"token": "5", "logprob": -0.25}, {"token": "1", "logprob": -2}, {"token": "5", "logprob": -9}]
            tokens = {"content": [{"token": "5", "logprob": -0.25, "top_logprobs": top}]}
            self.send(200, {"choices": [choice("5", logprobs=tokens)] * payload["n"]})
        else:
            self.send(200, good)

    def send(self, status: int, body: Any, headers: dict[str, str] | None = None, every_s: float = 0.0) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json"}.items():
            self.send_header(name, (headers or {}).get(name, value))
        if headers and "Retry-After" in headers:
            self.send_header("Retry-After", headers["Retry-After"])
        self.end_headers()
        for byte in data if every_s else ():
            self.wfile.write(bytes([byte]))
            time.sleep(every_s)
        if not every_s:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
