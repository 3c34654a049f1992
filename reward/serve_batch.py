"""What stands between the server's requests and the reward: limits, intake, and batches of what waits.

In: requests as mappings. Out: their scores. Three kinds of work have threads of their own, so that none holds up
another: a few read what was sent, names of the web are looked up apart (`reward/fetch.py`), and one scores. Requests
that wait together are one batch, in which those about one image share it: their images lie in one place by content.
Imported by the server alone.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from align.engine import EngineAway, EngineDied
from align.errors import UserError
from align.records import Candidate
from reward import fetch
from reward.asks import MAX_CANDIDATES, MAX_IMAGE_BYTES, MAX_IMAGES, Asked, BadAsk, Images, check_ask
from reward.base import Reward, Score

AWAY_S = 10
"""Seconds after which to ask again where the model behind the reward did not answer."""
READERS = 4
"""Threads that decode images: each may hold one of `Limits.pixels`."""
log = logging.getLogger("vlm-align.reward")


@dataclass(frozen=True)
class Limits:
    """What a server takes. Bytes of a body (and of an image from a URL), of all bodies that are not answered yet and
    what is parsed from them, pixels of an image, candidates and images of a request, candidates of the queue and of a
    batch, images that are fetched at a time; seconds that a batch waits for more to come."""

    body: int = 32 << 20
    bodies: int = 256 << 20
    pixels: int = 33_554_432
    candidates: int = MAX_CANDIDATES
    images: int = MAX_IMAGES
    queue: int = 4096
    batch: int = 64
    fetches: int = 64
    wait_s: float = 0.005


class Full(Exception):
    """There is no room for now; try again after so many seconds."""

    def __init__(self, what: str, seconds: int) -> None:
        super().__init__(f"{what}; try again in {seconds} s")
        self.seconds = seconds


class Left(Exception):
    """The client has gone; nobody reads an answer."""


Gone = asyncio.Future[Any]
"""Is done when a request's client has gone."""


class Intake:
    """Makes candidates of what was sent: everything that can be checked is, then what lies on the web is fetched."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.fetching = 0  # images under way
        self._readers = ThreadPoolExecutor(READERS, "read")

    async def checked(self, given: Mapping[str, Any], images: Images, name: str, gone: Gone) -> Asked:
        """All but the images behind URLs. Raises BadAsk, and Left where the client goes before its turn."""

        def check() -> Asked:
            if gone.done():
                raise Left
            return check_ask(given, images, name, self.limits.candidates, self.limits.images)

        return await asyncio.get_running_loop().run_in_executor(self._readers, check)

    async def fetched(self, asked: Asked, images: Images) -> Asked:
        """The same with the images behind URLs, all within `fetch.TOTAL_S` seconds. Raises BadAsk and Full."""
        urls = asked.urls
        if self.fetching and self.fetching + len(urls) > self.limits.fetches:
            raise Full("too many images are being fetched", math.ceil(fetch.TOTAL_S / 4))
        most = min(MAX_IMAGE_BYTES, self.limits.body)
        loop = asyncio.get_running_loop()

        async def one(url: str) -> str:
            return await loop.run_in_executor(self._readers, images.keep, await fetch.fetch(url, most))

        self.fetching += len(urls)
        tasks = [asyncio.create_task(one(url)) for url in urls]
        try:
            async with asyncio.timeout(fetch.TOTAL_S):
                return asked.with_images(dict(zip(urls, await asyncio.gather(*tasks), strict=True)))
        except TimeoutError:
            raise BadAsk(f"the images' URLs take longer than {fetch.TOTAL_S:g} s") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.fetching -= len(urls)

    def close(self) -> None:
        """Let the threads go."""
        self._readers.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Waiting:
    rows: list[Candidate]
    done: "asyncio.Future[list[Score]]"  # cancelled where the client has gone before
    begun: bool = False


class Batcher:
    """Scores what waits, all requests together, in one thread. `reward` is one whose failure on a row costs that row
    alone (`open_reward`); `died` is told when its model is gone for good."""

    def __init__(self, reward: Reward, limits: Limits, died: Callable[[EngineDied], None]) -> None:
        self.reward = reward
        self.limits = limits
        self.died = died
        self.waiting = 0  # candidates taken in and not scored yet
        self.taken = self.answered = self.left = 0  # requests; the last are those whose clients have gone
        self.speed = 0.0  # candidates a second, of late
        self.dead: EngineDied | None = None
        self._trouble_until = 0.0
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._next: _Waiting | None = None
        self._thread = ThreadPoolExecutor(1, "score")

    def in_trouble(self) -> bool:
        """Whether the last batch could not be scored, for `AWAY_S` seconds: then nobody knows."""
        return self.dead is not None or time.monotonic() < self._trouble_until

    def check_room(self, count: int) -> None:
        """Raise Full where so many candidates cannot wait now."""
        if self.waiting and self.waiting + count > self.limits.queue:
            seconds = min(60, max(1, math.ceil(self.waiting / self.speed))) if self.speed else 1
            raise Full("the queue is full", seconds)

    async def score(self, rows: list[Candidate], gone: Gone) -> list[Score]:
        """The scores of a request's rows. Raises Full; Left where the client goes first, and then does nothing that has
        not begun; what the reward raises."""
        self.check_room(len(rows))
        self.taken += 1
        entry = _Waiting(rows, asyncio.get_running_loop().create_future())
        self.waiting += len(rows)
        self._queue.put_nowait(entry)
        await asyncio.wait({entry.done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left += 1
            if entry.begun:
                await asyncio.wait({entry.done})  # its images are being read
            else:
                entry.done.cancel()
                self.waiting -= len(rows)
            raise Left
        self.answered += 1
        return entry.done.result()

    async def work(self) -> None:
        """Until `stop`, and then until nothing waits."""
        while (batch := await self._gathered()) is not None:
            batch = [entry for entry in batch if not entry.done.cancelled()]
            if not batch:
                continue
            for entry in batch:
                entry.begun = True
            size = sum(len(entry.rows) for entry in batch)
            try:
                scores = await self._scored([row for entry in batch for row in entry.rows])
            except Exception as error:  # whatever it is, the server lives on
                if not isinstance(error, EngineDied | UserError):
                    log.exception("a batch could not be scored")
                for entry in batch:
                    entry.done.set_exception(error)
                    entry.done.exception()  # nobody may ask for it
            else:
                for entry in batch:
                    mine, scores = scores[: len(entry.rows)], scores[len(entry.rows) :]
                    entry.done.set_result(mine)
            self.waiting -= size
        self._thread.shutdown(wait=False)

    def stop(self) -> None:
        """No more comes: `work` ends with what waits."""
        self._queue.put_nowait(None)

    async def _gathered(self) -> list[_Waiting] | None:
        """What is scored together, None at the end."""
        first = self._next or await self._queue.get()
        self._next = None
        if first is None:
            return None
        batch, size = [first], len(first.rows)
        until = time.monotonic() + self.limits.wait_s
        while size < self.limits.batch:
            try:
                if self._queue.empty():
                    entry = await asyncio.wait_for(self._queue.get(), until - time.monotonic())
                else:
                    entry = self._queue.get_nowait()
            except TimeoutError:
                break
            if entry is None:
                self._queue.put_nowait(None)
                break
            if entry.done.cancelled():
                continue
            if size + len(entry.rows) > self.limits.batch:
                self._next = entry
                break
            batch.append(entry)
            size += len(entry.rows)
        return batch

    async def _scored(self, rows: list[Candidate]) -> list[Score]:
        """The rows' scores. Raises what the reward raises, and says what that means for the server."""
        if self.dead:
            raise self.dead
        began = time.monotonic()
        try:
            scores = await asyncio.get_running_loop().run_in_executor(self._thread, self.reward.score, rows)
        except (EngineDied, UserError) as problem:
            self._trouble_until = time.monotonic() + AWAY_S
            log.error("a batch could not be scored: %s", problem)
            if isinstance(problem, EngineDied) and not isinstance(problem, EngineAway):
                self.dead = problem
                self.died(problem)
            raise
        self.speed = len(rows) / max(time.monotonic() - began, 1e-6)
        self._trouble_until = 0.0
        return scores
