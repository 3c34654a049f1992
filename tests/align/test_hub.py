import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from align.errors import UserError
from align.hub import pin

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub's API for one model with one branch, one data set and one gated model."""

    def do_GET(self) -> None:
        kind, _, rest = self.path.removeprefix("/api/").partition("/")
        repo, _, revision = rest.partition("/revision/")
        codes = {
            ("org/known", "main"): "",
            ("org/known", "gone"): "RevisionNotFound",
            ("org/gated", "main"): "GatedRepo",
        }
        missing = codes.get((repo, revision), "RepoNotFound")
        if missing:
            self.send_response(403 if missing == "GatedRepo" else 404)
            self.send_header("X-Error-Code", missing)
        else:
            self.send_response(200)
        body = json.dumps({"id": repo, "sha": COMMIT if kind == "models" else COMMIT[::-1]}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.HF_HUB_OFFLINE", False)
    yield
    server.shutdown()
    server.server_close()


def test_a_commit_is_itself() -> None:
    assert pin(f"org/name@{COMMIT}") == COMMIT


def test_the_cache_is_asked_before_the_hub(cache: Path, unreachable: None) -> None:
    refs = cache / "models--org--name" / "refs"
    (refs / "pr").mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    (refs / "pr" / "1").write_text(COMMIT[::-1] + "\n")
    assert pin("org/name") == pin("org/name@main") == COMMIT
    assert pin("org/name@pr/1") == COMMIT[::-1]
    (refs / "main").write_text("no commit")
    with pytest.raises(UserError, match="cannot be reached"):
        pin("org/name")


def test_a_revision_cannot_leave_the_cache(cache: Path, unreachable: None) -> None:
    (cache / "models--org--name" / "refs").mkdir(parents=True)
    (cache / "secret").write_text(COMMIT)
    with pytest.raises(UserError):
        pin("org/name@../../secret")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.constants.HF_HUB_OFFLINE", False)


def test_unreachable_hub_is_one_line(unreachable: None) -> None:
    with pytest.raises(UserError, match=r"^org/name@main: .*cannot be reached") as caught:
        pin("org/name")
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked(hub: None) -> None:
    assert pin("org/known") == COMMIT
    assert pin("org/known", repo_type="dataset") == COMMIT[::-1]


@pytest.mark.parametrize(
    ("name", "says"),
    [("org/known@gone", "this revision does not"), ("org/unknown", "no such model"), ("org/gated", "gated")],
)
def test_what_the_hub_refuses_is_named(hub: None, name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        pin(name)


@pytest.mark.parametrize("name", ["name", "org/", "/name", "org/name@", "a/b/c", "", "org/na me"])
def test_malformed_ids(name: str) -> None:
    with pytest.raises(UserError, match="hub id"):
        pin(name)
