"""Sessions of processes that share a Redis, and what they have to be without any."""

from __future__ import annotations

import random
from contextlib import ExitStack
from typing import Any

from kern_events import message
from projections import MemoryCache, RedisCache, Sessions, View


class Shared:
    """Two processes that share a Redis and a log, and a third one that knows no Redis."""

    def __init__(
        self,
        url: str,
        redis_url: str,
        stack: ExitStack,
        secret: bytes | None,
        memory: int,
        **options: Any,
    ) -> None:
        def open_(cache: Any) -> Sessions:
            return stack.enter_context(Sessions.open(url, cache=cache, durable=False))

        caches = [
            RedisCache(redis_url, secret=secret, memory=MemoryCache(memory), **options) for _ in range(2)
        ]
        self.ours = [open_(cache) for cache in caches]
        self.caches = caches
        self.plain = open_(MemoryCache(0))
        self.known: dict[str, int] = {}

    def step(self, random_: random.Random) -> None:
        """One thing that somebody does, and a look at the outcome by both."""
        session_id = f"s{random_.randrange(3)}"
        one = random_.choice(self.ours)
        if random_.random() < 0.1 and self.known.get(session_id, 0) > 8:
            version = one.restore(session_id, to_version=random_.randrange(1, self.known[session_id])).version
        else:
            drafts = [message("user", random_.randbytes(random_.choice((5, 400))).hex()) for _ in range(3)]
            version = one.append(session_id, drafts).version
        self.known[session_id] = version
        views = [each.load(session_id) for each in self.ours]

        assert views[0] == views[1] == self.expected(session_id)
        assert views[0].head.version == version
        window = one.history(session_id, last_messages=5)
        assert list(window) == list(self.plain.history(session_id, last_messages=5))

    def expected(self, session_id: str) -> View:
        """What the log says, without any cache."""
        return self.plain.load(session_id)
