"""The worker that the tests of requests talk to: a tool for each thing that a request can be about.

What it does it writes into a ledger, `/mnt/ledger`, which outlives it and is the test's to read. `gate` waits for a byte in a
pipe that the test holds: nothing here waits for time but `nap`, whose length the test says.
"""

import os
import signal
import threading

import halsup
from halsup import Answer, CallFailed, Context, ToolError, tool

meeting = threading.Barrier(int(os.environ.get("HALSUP_CAPACITY", "1")))


def note(line):
    """Writes a line into the ledger; whoever writes at the same time does not come between."""
    ledger = os.open("/mnt/ledger", os.O_WRONLY | os.O_APPEND)
    os.write(ledger, (line + "\n").encode())
    os.close(ledger)


@tool
def echo(context: Context, args):
    return args


@tool
def about(context: Context, args):
    return {"session": context.session, "correlation": context.correlation, "command": context.command}


@tool
def nap(context: Context, args):
    note(f"began {args[0]}")
    context.wait(args[1])
    return args[0]


@tool
def meet(context: Context, args):
    """Comes back when as many requests as the capacity are in here at once."""
    return meeting.wait(60) is not None


@tool
def gate(context: Context, args):
    """Comes back when the test has put a byte into the pipe; it cannot be cancelled."""
    note(f"in {args}")
    with open("/mnt/gate", "rb", buffering=0) as pipe:
        pipe.read(1)
    note(f"out {args}")
    return args


@tool
def named(context: Context, args):
    """Says what its attempt is called, which is a secret of this worker's and of its supervisor's, then waits as `gate`."""
    note(f"named {context.id}")
    with open("/mnt/gate", "rb", buffering=0) as pipe:
        pipe.read(1)
    return args


@tool
def hold(context: Context, args):
    """Works until nobody wants it any more."""
    note(f"holding {args}")
    try:
        context.wait(100)
    finally:
        note(f"released {args}")


@tool
def back(context: Context, args):
    """Has a tool of a client's used; what came of it."""
    try:
        return {"result": context.call(args[0], args[1])}
    except CallFailed as error:
        return {"reason": error.reason, "message": error.message}
    finally:
        note(f"called {args[0]}")


@tool
async def back_async(context: Context, args):
    try:
        return {"result": await context.call_async(args[0], args[1])}
    except CallFailed as error:
        return {"reason": error.reason, "message": error.message}


@tool
def fail(context: Context, args):
    raise ToolError("the disk is full", reason="full", category="disk", details={"free": 0})


@tool
def fail_as(context: Context, args):
    raise ToolError("it does not fit", reason="misfit", category=args)


@tool
def die_once(context: Context, args):
    """Kills its worker, but for whoever comes after one that was killed so."""
    if f"died {args}\n" in open("/mnt/ledger"):
        return "second"
    note(f"died {args}")
    os.kill(os.getpid(), signal.SIGKILL)


@tool
def crash(context: Context, args):
    raise KeyError("missing")


@tool
def die(context: Context, args):
    note(f"died {args}")
    os.kill(os.getpid(), signal.SIGKILL)


@tool
def count(context: Context, args):
    """A stream of numbers, each with so many bytes beside it."""
    number, ballast = args
    made = 0
    try:
        for made in range(number):
            yield [made, "x" * ballast] if ballast else made
    finally:
        note(f"cleaned {made}")
    return "counted"


def checked(chunk, taken):
    """Whether a chunk is the one that comes after so many."""
    if chunk.data != taken and chunk.data[0] != taken:
        raise ToolError(f"{chunk.data} instead of {taken}", reason="out of order")
    return taken + 1


@tool
def gather(context: Context, args):
    """Takes its input, which are numbers in their order; how many there were."""
    taken = 0
    for chunk in context.input:
        taken = checked(chunk, taken)
    return taken


@tool
async def gather_async(context: Context, args):
    taken = 0
    async for chunk in context.input:
        taken = checked(chunk, taken)
    return taken


@tool
def mirror(context: Context, args):
    """Sends each chunk back, before it takes the next."""
    for chunk in context.input:
        yield Answer(chunk.data, chunk.payload)
    return "mirrored"


@tool
def take(context: Context, args):
    """Takes so many chunks of its input, and then works on until nobody wants it any more."""
    try:
        for _ in range(args):
            next(context.input)
        note(f"took {args}")
        context.wait(100)
    finally:
        note(f"left {args}")


@tool
def drain(context: Context, args):
    """Takes chunks until there are none; it ends as its caller does."""
    taken = 0
    try:
        for taken, _ in enumerate(context.input, 1):
            note(f"took {taken}")
    finally:
        note(f"left {taken}")


@tool
def early(context: Context, args):
    """Answers when it has taken so many, whatever else is to come."""
    return [next(context.input).data for _ in range(args)]


@tool
def falter(context: Context, args):
    """A stream that its worker does not live to end."""
    note(f"began {args}")
    yield 0
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


@tool
def letters(context: Context, args):
    """A stream of so many bytes, each as memory of its own."""
    for number in range(args):
        yield bytes([97 + number])


@tool
def reverse(context: Context, args):
    """The payload, its last byte first; in the memory that was lent, if there is some."""
    if context.lent is None:
        return bytes(context.payload)[::-1]
    context.payload[:] = bytes(context.payload)[::-1]
    return context.answer_in_place(len(context.payload), "in place")


@tool
def long(context: Context, args):
    return "z" * args


@tool
def grow(context: Context, args):
    """Keeps so many bytes for as long as it lives."""
    kept.append(b"x" * args)


kept = []

if __name__ == "__main__":
    halsup.serve()
