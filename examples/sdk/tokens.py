#!/usr/bin/env python3
"""A tokenizer: learns byte pairs from text when it starts, then splits texts. Work for a processor, as models do it.

    halsup up examples/sdk/tokens.toml
    python3 examples/sdk/tokens.py call "the tokenizer splits this"

What takes long is done once, before the worker is ready: requests find it warm. Python runs one thread at a time, so each
worker takes one request, and the pool has as many workers as there are processors. Needs nothing but halsup.py beside it.
"""

import argparse
import collections
import functools
from typing import Dict, List, Tuple

import halsup
from halsup import CONTROL_PATH, Client, Context, ToolError, serve, tool

MERGES = 200
TOKENS_MAX = 100_000
Pair = Tuple[int, int]


class Tokenizer:
    """Byte pair encoding: the pair that comes most often becomes a token, again and again."""

    def __init__(self, text: str, merges: int) -> None:
        self.ranks: Dict[Pair, int] = {}
        self.pieces: List[bytes] = [bytes([byte]) for byte in range(256)]
        words = collections.Counter(tuple(word.encode()) for word in split(text))
        for _ in range(merges):
            pairs: Dict[Pair, int] = collections.Counter()
            for word, count in words.items():
                for pair in zip(word, word[1:]):
                    pairs[pair] += count
            if not pairs:
                break
            # Of pairs that come equally often the smaller is taken, so that every worker learns the same.
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            token = len(self.pieces)
            self.ranks[best] = token
            self.pieces.append(self.pieces[best[0]] + self.pieces[best[1]])
            words = collections.Counter({merge(word, best, token): count for word, count in words.items()})
        self.encode_word = functools.lru_cache(maxsize=65_536)(self._encode_word)

    def _encode_word(self, word: str) -> Tuple[int, ...]:
        tokens: Tuple[int, ...] = tuple(word.encode())
        while len(tokens) > 1:
            first = min(zip(tokens, tokens[1:]), key=lambda pair: self.ranks.get(pair, len(self.pieces)))
            if first not in self.ranks:
                break
            tokens = merge(tokens, first, self.ranks[first])
        return tokens

    def decode(self, tokens: List[int]) -> str:
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")


def split(text: str) -> List[str]:
    """Words with the blank before them, so that nothing is lost between."""
    words = text.split(" ")
    return words[:1] + [" " + word for word in words[1:]]


def merge(tokens: Tuple[int, ...], pair: Pair, token: int) -> Tuple[int, ...]:
    merged: List[int] = []
    at = 0
    while at < len(tokens):
        if tokens[at : at + 2] == pair:
            merged.append(token)
            at += 2
        else:
            merged.append(tokens[at])
            at += 1
    return tuple(merged)


@functools.lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    # Any text will do; this one is there.
    known = [halsup, *(getattr(halsup, name) for name in halsup.__all__)]
    return Tokenizer(" ".join(str(one.__doc__) for one in known), MERGES)


@tool
def encode(context: Context, args: dict) -> dict:
    """Splits `text`. Says the tokens, and how many bytes each stands for on average."""
    tokens: List[int] = []
    for word in split(args["text"]):
        # Between words, not within: whoever has given up gets the processor back in time.
        context.check()
        tokens += tokenizer().encode_word(word)
        if len(tokens) > TOKENS_MAX:
            raise ToolError(f"more than {TOKENS_MAX} tokens", reason="too_long", category="validation")
    return {"tokens": tokens, "bytes_per_token": round(len(args["text"].encode()) / max(1, len(tokens)), 2)}


@tool
def decode(context: Context, args: dict) -> str:
    """Puts the text of `tokens` together again."""
    try:
        return tokenizer().decode(args["tokens"])
    except IndexError as error:
        raise ToolError("there is no such token", reason="unknown_token", category="validation") from error


def call(path: str, text: str) -> None:
    with Client(path) as client:
        # It does no harm to encode twice: where a worker is lost, another may.
        said = client.call("tokens", "encode", {"text": text}, timeout=10, idempotent=True).result
        print(said["tokens"])
        print(f"{said['bytes_per_token']} bytes per token")
        print(client.call("tokens", "decode", {"tokens": said["tokens"]}, timeout=10, idempotent=True).result)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="A worker; with `call`, its caller.")
    options.add_argument("mode", nargs="?", choices=["call"])
    options.add_argument("text", nargs="?", default="the tokenizer splits this")
    options.add_argument("--socket", default=CONTROL_PATH)
    chosen = options.parse_args()
    if chosen.mode:
        call(chosen.socket, chosen.text)
    else:
        tokenizer()
        serve()
