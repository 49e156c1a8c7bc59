#!/usr/bin/env python3
"""Arrays of numpy in shared memory: a worker that works where the caller's numbers are, and a caller that lends them.

    python3 -m pip install numpy
    halsup up examples/sdk/arrays.toml
    python3 examples/sdk/arrays.py call

The 8 MiB of the array are written once, by the caller. The worker reads and writes the same memory, and what goes through
sockets is a line of JSON each way. Needs numpy, from PyPI, at both ends; halsup.py lies beside this file.
"""

import argparse
import sys

from halsup import CONTROL_PATH, Answer, Client, Context, ToolError, serve, tool

try:
    import numpy
except ImportError:
    sys.exit("arrays: needs numpy, which is not part of Python: python3 -m pip install numpy")

COUNT = 1024 * 1024


def array_of(context: Context, args: dict) -> numpy.ndarray:
    """The caller's array, where it is: nothing is copied."""
    if context.payload is None:
        raise ToolError("an array is to come as a payload", reason="no_payload", category="validation")
    return numpy.frombuffer(context.payload, dtype=args["dtype"]).reshape(args["shape"])


@tool
def standardise(context: Context, args: dict) -> Answer:
    """Makes the mean of an array of floats 0 and its deviation 1, in place, and says what they were."""
    array = array_of(context, args)
    mean, deviation = float(array.mean()), float(array.std())
    if context.lent is None:
        # What may not be written is answered in memory of its own.
        return Answer(result={"mean": mean, "deviation": deviation}, payload=(array - mean) / (deviation or 1.0))
    array -= mean
    array /= deviation or 1.0
    return context.answer_in_place(array.nbytes, {"mean": mean, "deviation": deviation})


@tool
def product(context: Context, args: dict) -> Answer:
    """Multiplies a matrix by its transpose; the answer has a shape of its own."""
    matrix = array_of(context, args)
    square = numpy.ascontiguousarray(matrix @ matrix.T)
    return Answer(result={"dtype": str(square.dtype), "shape": square.shape}, payload=square)


def call(path: str) -> None:
    random = numpy.random.default_rng(7)
    with Client(path) as client:
        with client.buffer(COUNT * 8) as buffer:
            # The array is made in the memory that is lent.
            array = numpy.frombuffer(buffer.first(COUNT * 8), dtype="float64")
            array[:] = random.normal(5.0, 2.0, COUNT)
            buffer.length = array.nbytes
            told = client.call("arrays", "standardise", {"dtype": "float64", "shape": [COUNT]}, payload=buffer, timeout=30)
            was = told.result
            print(f"mean {was['mean']:.1f} and deviation {was['deviation']:.1f}, now {abs(array.mean()):.1f} and {array.std():.1f}")
            # An array that still looks at the buffer would keep it from being lent again.
            del array
        matrix = numpy.arange(6, dtype="float64").reshape(2, 3)
        told = client.call("arrays", "product", {"dtype": "float64", "shape": matrix.shape}, payload=matrix, timeout=30)
        print(numpy.frombuffer(told.payload, dtype=told.result["dtype"]).reshape(told.result["shape"]).tolist())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="A worker; with `call`, its caller.")
    options.add_argument("mode", nargs="?", choices=["call"])
    options.add_argument("--socket", default=CONTROL_PATH)
    chosen = options.parse_args()
    call(chosen.socket) if chosen.mode else serve()
