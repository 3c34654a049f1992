"""Commands for a reward that is used alone: a file is scored, a server is run.

`vlm-align score` is a stage with KEY=VALUE words; three plain words are a reward, a file in and a file out.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from align.errors import UserError


def with_files(stage: click.Command) -> click.Command:
    """The `score` stage's command, which also scores a file: `score REWARD.yaml IN OUT`."""
    pipeline = stage.callback
    assert pipeline is not None

    def command(words: tuple[str, ...], allow_urls: bool, **given: Any) -> None:
        keyed = [word for word in words if re.match(r"[\w.\[\]]+=", word)]
        if not keyed and len(words) > 1:
            score_words(words, allow_urls)
        elif allow_urls:
            raise UserError("--allow-urls goes with a file: vlm-align score REWARD.yaml in.jsonl out.jsonl")
        else:
            pipeline(words=words, **given)

    stage.callback = command
    stage.params.append(
        click.Option(["--allow-urls"], is_flag=True, help="With a file: images may be http(s) URLs of public hosts.")
    )
    stage.help = f"{stage.help}\n\n  vlm-align score REWARD.yaml IN OUT scores a file (.jsonl, .parquet) alone."
    return stage


def score_words(words: tuple[str, ...], allow_urls: bool) -> None:
    """Score a file. Raises UserError."""
    if len(words) != 3:
        raise UserError("three words are expected, REWARD.yaml IN OUT, or KEY=VALUE words for the stage")
    from pipelines.runner import StageFailed
    from reward.files import check_files, score_file
    from reward.load import read_reward

    source, target = Path(words[1]), Path(words[2])
    check_files(source, target)
    with _told():
        counts = score_file(read_reward(words[0]), source, target, allow_urls=allow_urls)
    if counts.answers == counts.unscored:
        why = f", the first: {counts.reason}" if counts.reason else ""
        raise StageFailed(f"{source}: no answer of its {counts.rows} rows has a score{why}")
    unscored = f", {counts.unscored} of them without a score" if counts.unscored else ""
    unreadable = f"; {counts.unreadable} rows could not be read" if counts.unreadable else ""
    why = f"; the first reason: {counts.reason}" if counts.reason else ""
    click.echo(f"{target}: {counts.answers} answers from {counts.rows} rows{unscored}{unreadable}{why}")


@contextmanager
def _told() -> Iterator[None]:
    """A model that is gone is told in one line."""
    from align.engine import EngineDied
    from pipelines.runner import StageFailed

    try:
        yield
    except EngineDied as error:
        raise StageFailed(str(error)) from None


@click.command("bench-reward")
@click.argument("reward")
@click.argument("file", metavar="FILE")
@click.argument("out", metavar="OUT.json")
def bench_reward(reward: str, file: str, out: str) -> None:
    """Measure a reward on a benchmark's preference pairs.

    FILE is VL-RewardBench's parquet or Multimodal RewardBench's all_data.json (also as .jsonl or .csv), told apart by
    their columns. OUT.json gets the accuracies by the benchmark's own definition and every pair's scores.
    """
    from pipelines.runner import StageFailed
    from reward.bench import bench, check_bench, table
    from reward.load import read_reward

    check_bench(Path(file), Path(out))
    with _told():
        result = bench(read_reward(reward), Path(file), Path(out))
    click.echo(table(result))
    if result["n"] == result["unscored"]:
        reason = next((found["reason"] for found in (*result["pairs"], *result["bad"]) if found["reason"]), "")
        raise StageFailed(f"{out}: no pair has two scores, the first: {reason}")


@click.command("serve-reward")
@click.argument("reward")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=8100, show_default=True)
@click.option("--token-env", metavar="NAME", help="Environment variable with the bearer token that clients must send.")
@click.option("--allow-urls", is_flag=True, help="Images may be http(s) URLs of public hosts.")
@click.option("--max-body-mb", type=click.IntRange(1), default=32, show_default=True)
@click.option("--max-pixels", type=click.IntRange(1), default=33_554_432, show_default=True, help="Of one image.")
@click.option("--max-candidates", type=click.IntRange(1), show_default="1024", help="Of one request.")
@click.option("--max-images", type=click.IntRange(1), show_default="16", help="Of one request.")
@click.option("--max-queue", type=click.IntRange(1), default=4096, show_default=True, help="Candidates that may wait.")
def serve_reward(
    reward: str,
    host: str,
    port: int,
    token_env: str | None,
    allow_urls: bool,
    max_body_mb: int,
    max_pixels: int,
    max_candidates: int | None,
    max_images: int | None,
    max_queue: int,
) -> None:
    """Serve a reward over HTTP (POST /score, /health, /metrics, /docs)."""
    import os
    from importlib.util import find_spec

    from reward.load import load_reward

    if token_env and not os.environ.get(token_env):
        raise UserError(f"--token-env: {token_env} is not set or empty")
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: pip install 'vlm-align[serve]'")
    _check_address(host, port)
    from reward.asks import MAX_CANDIDATES, MAX_IMAGES
    from reward.serve import serve
    from reward.serve_batch import Limits

    limits = Limits(
        body=max_body_mb << 20,
        pixels=max_pixels,
        candidates=max_candidates or MAX_CANDIDATES,
        images=max_images or MAX_IMAGES,
        queue=max_queue,
    )
    with _told(), load_reward(reward) as opened:
        serve(opened, host, port, limits, token_env, allow_urls)


def _check_address(host: str, port: int) -> None:
    """Raise UserError where nothing can listen there, before a model loads."""
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error.strerror}") from None
