"""The worked examples do what they say: each worker a process, each caller another, and a bridge in the place of halsup."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import unittest

from play import DEADLINE_SECONDS, SDK, Bridge, Worker

import halsup


def example(name):
    return os.path.join(SDK, name)


class Example(unittest.TestCase):
    maxDiff = None

    def begin(self, name, **environment):
        worker = Worker(program=example(name), **environment)
        worker.__enter__()
        self.addCleanup(worker.__exit__)
        bridge = Bridge(worker).__enter__()
        self.addCleanup(bridge.__exit__)
        return bridge

    def caller(self, bridge, name, *arguments):
        """What the caller of the example prints."""
        ended = subprocess.run(
            [sys.executable, "-B", example(name), "call", *arguments, "--socket", bridge.path],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        self.assertEqual((ended.stderr, ended.returncode, bridge.errors), ("", 0, []))
        return ended.stdout.splitlines()


class Plain(Example):
    def test_a_tokenizer_splits_text_and_puts_it_together_again(self):
        bridge = self.begin("tokens.py")
        text = "the worker answers the request: größer"
        tokens, ratio, again = self.caller(bridge, "tokens.py", text)
        self.assertEqual(again, text)
        self.assertLess(tokens.count(",") + 1, len(text.encode()))
        self.assertGreater(float(ratio.split()[0]), 1.2, "it has learned something")
        with halsup.Client(bridge.path) as client, self.assertRaises(halsup.ApplicationFailed) as raised:
            client.call("tokens", "decode", {"tokens": [1_000_000]})
        self.assertEqual(raised.exception.reason, "unknown_token")

    def test_a_long_text_goes_as_memory_without_a_word(self):
        bridge = self.begin("tokens.py")
        with halsup.Client(bridge.path) as client:
            text = "word " * 20_000
            tokens = client.call("tokens", "encode", {"text": text}).result["tokens"]
            self.assertEqual(client.call("tokens", "decode", {"tokens": tokens}).result, text)

    def test_a_stream_is_printed_word_by_word(self):
        bridge = self.begin("babble.py")
        (line,) = self.caller(bridge, "babble.py", "--words", "7")
        self.assertEqual(len(line.split()), 7)
        (stopped,) = bridge.events
        self.assertEqual((stopped["measurements"], stopped["metadata"]), ({"words": 7}, {"cancelled": False}))

    def test_without_numpy_the_worker_of_arrays_says_what_is_missing(self):
        without = "import runpy, sys; sys.modules['numpy'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"
        ended = subprocess.run(
            [sys.executable, "-B", "-c", without, example("arrays.py")],
            env=dict(os.environ, PYTHONPATH=SDK),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        self.assertEqual(ended.returncode, 1)
        self.assertIn("needs numpy", ended.stderr)


class Documents(unittest.TestCase):
    def block(self, document, beginning):
        """The first block of Python in a document that begins like this, as a program."""
        with open(os.path.join(SDK, "..", "..", "docs", document)) as file:
            blocks = [block.split("\n```")[0] for block in file.read().split("```python\n")[1:]]
        text = next(block for block in blocks if block.startswith(beginning))
        program = tempfile.NamedTemporaryFile("w", suffix=".py")
        self.addCleanup(program.close)
        program.write(text)
        program.flush()
        return program.name

    def test_the_worker_in_the_document_about_requests_works(self):
        with Worker(program=self.block("dispatch.md", "from halsup import Context")) as worker:
            self.assertEqual(worker.ask("add", {"a": 1, "b": 2})["result"], 3)

    def test_the_worker_in_the_contract_works_without_the_sdk(self):
        worker = Worker(program=self.block("worker-contract.md", "import json, os, socket\n\nchannel"))
        self.addCleanup(worker.__exit__)
        worker.hear("hello", protocol=1)
        worker.hear("ready")
        worker.is_alive()
        self.assertEqual(worker.ask("anything", [1])["result"], [1])


@unittest.skipUnless(importlib.util.find_spec("numpy"), "needs numpy")
class WithNumpy(Example):
    def test_an_array_is_worked_on_where_it_is(self):
        bridge = self.begin("arrays.py", OPENBLAS_NUM_THREADS="1")
        printed = self.caller(bridge, "arrays.py")
        self.assertEqual(printed, ["mean 5.0 and deviation 2.0, now 0.0 and 1.0", "[[5.0, 14.0], [14.0, 50.0]]"])


if __name__ == "__main__":
    unittest.main()
