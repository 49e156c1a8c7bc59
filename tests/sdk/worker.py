"""The worker that the tests of the SDK talk to: a tool for each thing that a worker can do, right or wrong."""

import asyncio
import os
import sys
import threading

import halsup
from halsup import Answer, CallFailed, Context, ToolError, tool

meeting = threading.Barrier(int(os.environ.get("HALSUP_CAPACITY", "1")))


@tool
def echo(context: Context, args):
    """Says what it was told."""
    return args


@tool(name="who am i")
def about(context: Context, args):
    return {
        "id": context.id,
        "command": context.command,
        "session": context.session,
        "correlation": context.correlation,
        "remaining": context.remaining,
        "streaming": context.streaming,
    }


@tool
def meet(context: Context, args):
    """Comes back when as many requests as the capacity are in here at once."""
    meeting.wait(60)
    return threading.current_thread().name


@tool
def ask(context: Context, args):
    """Waits for the supervisor's word."""
    try:
        return context.call("tool", args)
    except CallFailed as error:
        return {"reason": error.reason, "message": error.message}


@tool
async def ask_async(context: Context, args):
    return await context.call_async("tool", args)


@tool
def impatient(context: Context, args):
    return context.call("tool", timeout=0.01)


@tool
def tell(context: Context, args):
    context.event("something", {"count": 1}, {"of": "it"})


@tool
def count(context: Context, args):
    """A stream of numbers."""
    try:
        for number in range(args):
            yield number
    finally:
        context.event("cleaned")
    return "counted"


@tool
async def count_async(context: Context, args):
    try:
        for number in range(args):
            yield number
            await asyncio.sleep(0)
    finally:
        context.event("cleaned")


@tool
def pieces(context: Context, args):
    """A stream of everything that a chunk can be."""
    yield b"bytes"
    yield Answer(result={"of": "both"}, payload=bytearray(b"both"))
    yield "x" * 70_000


@tool
def hold(context: Context, args):
    """Works until nobody wants it any more."""
    context.event("holding")
    print("holding", flush=True)
    try:
        context.wait(600)
    finally:
        context.event("cleaned")
        print("cleaned", flush=True)


@tool
async def hold_async(context: Context, args):
    context.event("holding")
    try:
        await asyncio.sleep(600)
    finally:
        context.event("cleaned")
        print("cleaned", flush=True)


@tool
def deaf(context: Context, args):
    """Does not look whether it is cancelled, until the supervisor has said something."""
    context.event("deaf")
    sys.stdin.readline()
    return "too late"


@tool
def fail(context: Context, args):
    raise ToolError("it is full", reason="full", category="disk", details={"free": 0})


@tool
def crash(context: Context, args):
    raise KeyError("missing \udc80" + "x" * (args or 0))


@tool
def leave(context: Context, args):
    sys.exit("a tool that ends the program")


BAD = {
    "object": lambda: object(),
    "nan": lambda: float("nan"),
    "surrogate": lambda: "\ud800",
    "twice": lambda: {1: "a", "1": "b"},
    "deep": lambda: [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]],
    "deep object": lambda: [[[[[[[[[[[[[[{"a": 1}]]]]]]]]]]]]]],
    "large": lambda: [1 << 64],
    "beside": lambda: Answer(result="x" * 70_000, payload=b"y"),
    "place": lambda: Answer(in_place=1),
}


@tool
def bad(context: Context, args):
    return BAD[args]()


@tool
def backwards(context: Context, args):
    """The payload, its last byte first; in the memory that was lent, if there is some."""
    if context.lent is None:
        return bytes(context.payload)[::-1]
    context.payload[:] = bytes(context.payload)[::-1]
    return context.answer_in_place(len(context.payload), {"readonly": context.payload.readonly})


@tool
def large(context: Context, args):
    """So many bytes, whatever was lent."""
    return b"z" * args


@tool
def length(context: Context, args):
    return None if context.payload is None else [len(context.payload), context.payload.readonly]


@tool
def mapped(context: Context, args):
    """Where lent buffers are mapped here, and how many descriptors are open."""
    with open("/proc/self/maps") as maps:
        places = [line.split("-")[0] for line in maps if "memfd:lent" in line]
    return {"mapped": places, "open": len(os.listdir("/proc/self/fd"))}


@tool
def gather(context: Context, args):
    """All of its input; `None` where there is none."""
    if context.input is None:
        return None
    try:
        return [chunk.data if chunk.payload is None else [chunk.data, len(chunk.payload)] for chunk in context.input]
    finally:
        context.event("cleaned")


@tool
async def gather_async(context: Context, args):
    try:
        return [chunk.data async for chunk in context.input]
    finally:
        context.event("cleaned")


@tool
def mirror(context: Context, args):
    """Sends each chunk of its input back before it takes the next."""
    for chunk in context.input:
        yield chunk.data


if __name__ == "__main__":
    if "--async" in sys.argv:
        asyncio.run(halsup.serve_async())
    else:
        halsup.serve()
    print("ended")
