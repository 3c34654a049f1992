import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from align.engine import VLLM, EngineDied, Reply, Request, Transformers, VLLMServer, open_engine
from align.engines.served import complaint
from align.engines.server import ServerEngine
from align.engines.vllm import VLLMEngine
from align.errors import UserError
from align.loaded import noting
from align.records import Message, Sampling
from tests.tiny import tiny_idefics3, tiny_mllama

GREEDY = Sampling(temperature=0, max_tokens=8)
WARM = Sampling(temperature=1.0, top_p=0.9, max_tokens=8)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_idefics3(tmp_path_factory.mktemp("idefics3")))


def requests_of(images: list[str], sampling: Sampling, **more: Any) -> list[Request]:
    system = Message(role="system", content="Be brief.")
    return [
        Request(
            str(i), [system, Message(role="user", content=f"what is {i}?")], [images[i % 3]], sampling=sampling, **more
        )
        for i in range(8)
    ] + [Request("text", [Message(role="user", content="hello")], sampling=sampling, **more)]


@pytest.fixture(scope="module")
def by_transformers(model: str, images: list[str]) -> list[Reply]:
    with open_engine(Transformers(engine="transformers", model=model, dtype="float32")) as engine:
        return engine.generate(requests_of(images, GREEDY, top_logprobs=5))


def check_like_transformers(replies: list[Reply], expected: list[Reply]) -> None:
    assert [(r.id, r.finish, r.error) for r in replies] == [(e.id, e.finish, "") for e in expected]
    # vLLM leaves out the bytes of a character that is not whole at the end of an answer.
    assert [r.texts[0].rstrip("\ufffd") for r in replies] == [e.texts[0].rstrip("\ufffd") for e in expected]
    for reply, other in zip(replies, expected, strict=True):
        ours, theirs = reply.first_logprobs[0], other.first_logprobs[0]
        assert len(ours) > 1
        assert all(math.isclose(ours[token], theirs[token], abs_tol=1e-3) for token in ours.keys() & theirs.keys())
        best = max(ours, key=lambda t: ours[t])
        assert best in (max(theirs, key=lambda t: theirs[t]), "")  # vLLM's text of a byte that is no character


# vLLM in this process


@pytest.fixture(scope="module")
def engine(model: str) -> Iterator[VLLMEngine]:
    config = VLLM(engine="vllm", model=model, dtype="float32", max_model_len=256, enforce_eager=True)
    before = set(psutil.Process().children(recursive=True))
    with noting() as notes, open_engine(config) as opened:
        assert isinstance(opened, VLLMEngine)
        assert notes == [{"model": model, "dtype": "float32", "device": "cpu"}]
        yield opened
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.vllm
def test_greedy_equals_transformers(engine: VLLMEngine, images: list[str], by_transformers: list[Reply]) -> None:
    check_like_transformers(engine.generate(requests_of(images, GREEDY, top_logprobs=5)), by_transformers)


@pytest.mark.vllm
def test_draws_depend_on_the_requests_own_seed(engine: VLLMEngine, images: list[str]) -> None:
    requests = requests_of(images, WARM, n=3, seed=40)
    together = engine.generate(requests)
    assert len({t for r in together for t in r.texts}) > 15
    assert engine.generate(requests[::-1])[::-1] == together
    second = engine.generate(requests_of(images, WARM, seed=41))
    assert [r.texts[0] for r in second] == [r.texts[1] for r in together]  # sample i is drawn with seed + i


@pytest.mark.vllm
def test_a_shards_answers_do_not_depend_on_what_was_asked_before(engine: VLLMEngine, images: list[str]) -> None:
    hot = Sampling(temperature=1.5, max_tokens=40)
    shards = [requests_of(images, hot, n=4, seed=seed, top_logprobs=5, json_schema=schema) for seed, schema in
              ((1, None), (2, SCHEMA), (3, None))]  # fmt: skip
    first = [engine.generate(shard) for shard in shards]
    again = [engine.generate(shard) for shard in shards[::-1]][::-1]
    # to the last digit, though images and prompts were all seen before
    assert again == first


@pytest.mark.vllm
def test_answers_keep_to_a_schema(engine: VLLMEngine, images: list[str]) -> None:
    free = Sampling(temperature=1.0, max_tokens=120)
    replies = engine.generate(requests_of(images, free, seed=1, json_schema=SCHEMA, top_logprobs=3))
    done = [json.loads(t) for r in replies for t, f in zip(r.texts, r.finish, strict=True) if f == "stop"]
    assert done
    assert all(d["colour"] in ("red", "blue") for d in done)
    assert all(math.isfinite(p) for r in replies for p in r.first_logprobs[0].values())


@pytest.mark.vllm
def test_a_bad_request_fails_alone(engine: VLLMEngine, images: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"none")
    user = [Message(role="user", content="what?")]
    odd = [
        Request("long", [Message(role="user", content="x" * 400)], images[:1]),
        Request("broken", user, [str(broken)]),
        Request("schema", user, images[:1], json_schema={"type": "nonsense"}),
    ]
    good = requests_of(images, GREEDY)
    replies = engine.generate([*good[:4], *odd, *good[4:]])
    by_id = {r.id: r for r in replies}
    assert "context length" in by_id["long"].error
    assert by_id["broken"].error.startswith("image: unidentified")
    assert by_id["schema"].error
    assert all(not by_id[g.id].error and by_id[g.id].texts for g in good)


@pytest.mark.parametrize("kind", ["vllm", "vllm-server"])
def test_mllama_is_refused_with_the_way_to_go(tmp_path: Path, kind: str) -> None:
    config = (VLLM if kind == "vllm" else VLLMServer).model_validate(
        {"engine": kind, "model": str(tiny_mllama(tmp_path))}
    )
    with pytest.raises(UserError, match="engine: transformers"), open_engine(config):
        pass


@pytest.mark.vllm
def test_a_model_that_vllm_cannot_load_is_refused_in_a_line(tmp_path: Path) -> None:
    folder = tiny_idefics3(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Unheard"], "model_type": "unheard"}))
    unheard = VLLM(engine="vllm", model=str(folder), enforce_eager=True)
    with pytest.raises(UserError, match=r"vLLM cannot load this model: .*unheard") as caught, open_engine(unheard):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.vllm
def test_an_engine_that_is_killed_stops_the_stage_in_a_line(model: str, images: list[str]) -> None:
    config = VLLM(engine="vllm", model=model, dtype="float32", max_model_len=256, enforce_eager=True)
    with open_engine(config) as engine:
        assert isinstance(engine, VLLMEngine)
        family = psutil.Process(engine.pid).children(recursive=True)
        family[0].kill()
        for _ in range(2):  # it stays dead
            with pytest.raises(EngineDied, match=r"^vLLM's engine died: its process was killed \(SIGKILL: .*\)$"):
                engine.generate(requests_of(images, GREEDY))
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


@pytest.mark.parametrize("kind", ["vllm", "vllm-server"])
def test_an_adapter_folder_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    config = (VLLM if kind == "vllm" else VLLMServer).model_validate({"engine": kind, "model": str(tmp_path)})
    with pytest.raises(UserError, match="merge it first"), open_engine(config):
        pass


# A server of our own


def served(model: str, *more: str, **settings: Any) -> VLLMServer:
    args = ["--enforce-eager", *more]
    return VLLMServer(
        engine="vllm-server", model=model, dtype="float32", max_model_len=256, serve_args=args, **settings
    )


@pytest.mark.vllm
def test_a_server_of_our_own_from_start_to_death(
    model: str, images: list[str], by_transformers: list[Reply], tmp_path: Path
) -> None:
    with open_engine(served(model, retries=1), str(tmp_path / "logs")) as engine:
        assert isinstance(engine, ServerEngine)
        check_like_transformers(engine.generate(requests_of(images, GREEDY, top_logprobs=5)), by_transformers)
        warm = engine.generate(requests_of(images, WARM, n=3, seed=40))
        assert len({t for r in warm for t in r.texts}) > 15
        assert engine.generate(requests_of(images, WARM, n=3, seed=40)) == warm
        long, good = engine.generate(
            [Request("long", [Message(role="user", content="x" * 400)]), requests_of(images, GREEDY)[0]]
        )
        assert long.error.startswith("400: ")
        assert good.texts == by_transformers[0].texts

        assert engine._served is not None
        supervisor = psutil.Process(engine._served._process.pid)
        family = supervisor.children(recursive=True)
        assert any("EngineCore" in " ".join(p.cmdline()) for p in family)
        (server,) = supervisor.children()
        server.kill()
        with pytest.raises(EngineDied, match=r"died|is gone"):
            engine.generate(requests_of(images, GREEDY))
    _, alive = psutil.wait_procs([supervisor, *family], timeout=20)
    assert alive == []
    assert "Application startup complete" in (tmp_path / "logs" / "vllm-server.log").read_text()


@pytest.mark.vllm
def test_a_server_that_does_not_start_says_why(model: str, tmp_path: Path) -> None:
    config = served(model, "--no-such-option")
    says = r"unrecognized arguments: --no-such-option; log: .*vllm-server\.log"
    with pytest.raises(UserError, match=says) as caught, open_engine(config, str(tmp_path)):
        pass
    assert "\n" not in str(caught.value)


def test_the_complaint_is_the_last_error_that_says_something() -> None:
    lines = [
        "(APIServer) INFO loading",
        "(EngineCore) ERROR 11-21 08:00:00 [core.py:1] ValueError: No available memory for the cache blocks.",
        "(APIServer) RuntimeError: Engine core initialization failed. See root cause above.",
        "",
    ]
    assert complaint(lines) == "ValueError: No available memory for the cache blocks."
    assert complaint(["one", "two"]) == "two"
    assert complaint([]) == "it said nothing"


# Nothing outlives us

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
SUPERVISED = f"""
import os, subprocess, sys
sys.argv = ["supervise", sys.executable, "-c", {SLEEPER!r}]
sys.path.insert(0, "align/engines")
import supervise
supervise.GRACE_S = 0.3
supervise.main(sys.argv[1:])
"""
PARENT_OF_SUPERVISED = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {SUPERVISED!r}], stdin=subprocess.PIPE, start_new_session=True)
time.sleep(600)
"""


def test_children_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT_OF_SUPERVISED],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert any(p.cmdline()[-1] == SLEEPER for p in family)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
