#!/usr/bin/env python3
"""A stream: words as they are made, the way language models send them. A caller that stalls stalls its own stream alone.

    halsup up examples/sdk/babble.toml
    python3 examples/sdk/babble.py call --words 30

Each `yield` is a chunk, sent when the caller has room for it. When the caller goes, the generator is closed at its `yield`, and
`finally` cleans up. This one is async: thirty-two streams share a thread. Needs nothing but halsup.py beside it.
"""

import argparse
import asyncio
import collections
import random
from typing import Any, AsyncIterator, Dict, List

import halsup
from halsup import CONTROL_PATH, Client, Context, serve, tool


def learn(text: str) -> Dict[str, List[str]]:
    """Which words follow which."""
    follow: Dict[str, List[str]] = collections.defaultdict(list)
    words = text.split()
    for word, after in zip(words, words[1:] + words[:1]):
        follow[word].append(after)
    return dict(follow)


# Any text will do; this one is there.
FOLLOW = learn(" ".join(str(one.__doc__) for one in [halsup, *(getattr(halsup, name) for name in halsup.__all__)]))


@tool
async def babble(context: Context, args: Dict[str, Any]) -> AsyncIterator[str]:
    """Says `words` words, `pause` seconds apart; the same `seed` says the same."""
    chance = random.Random(args.get("seed"))
    word, said = chance.choice(list(FOLLOW)), 0
    try:
        while said < args.get("words", 50):
            yield word
            said += 1
            word = chance.choice(FOLLOW[word])
            # A model would think here.
            await asyncio.sleep(args.get("pause", 0))
    finally:
        context.event("babble.stopped", {"words": said}, {"cancelled": context.cancelled})


def call(path: str, words: int) -> None:
    with Client(path) as client:
        with client.stream("babble", "babble", {"words": words, "pause": 0.05, "seed": 1}, timeout=60) as stream:
            for chunk in stream:
                print(chunk.data, end=" ", flush=True)
        print()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="A worker; with `call`, its caller.")
    options.add_argument("mode", nargs="?", choices=["call"])
    options.add_argument("--words", type=int, default=30)
    options.add_argument("--socket", default=CONTROL_PATH)
    chosen = options.parse_args()
    call(chosen.socket, chosen.words) if chosen.mode else serve()
