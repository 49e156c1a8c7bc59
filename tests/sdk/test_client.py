"""What a caller does that uses the SDK: a real socket, and the daemon's side of it played reply by reply."""

import asyncio
import gc
import mmap
import os
import socket
import threading
import time
import unittest

from play import DEADLINE_SECONDS, FIXED, Daemon, reply, reply_with

import halsup
from halsup import ApplicationFailed, AsyncClient, Client, ControlError, InvalidPayload, RequestFailed, Unreachable

EXECUTED = {
    "request": "0" * 32,
    "worker": "web.0",
    "generation": 3,
    "attempts": 1,
    "queued_usec": 1_500_000,
    "usec": 2_000_000,
    "correlation": "c",
}
FAILED = {"category": "pool", "message": "full", "attempts": 0, "request": "r", "correlation": "c"}


def memories():
    """How many descriptors of memory this process has."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass
    return sum("/memfd:" in link for link in links)


def failed(connection, **parameters):
    reply(connection, {**FAILED, **parameters}, error="io.halsup.Control.RequestFailed")


class Pool:
    """What a daemon answers by itself: `args` say what is to come back."""

    def __init__(self):
        self.calls = []
        self.inodes = []

    def __call__(self, call, descriptors, connection):
        self.calls.append(call)
        parameters = call["parameters"]
        command = parameters.get("command")
        if descriptors:
            self.inodes.append(os.fstat(descriptors[0]).st_ino)
        if command == "echo":
            reply(connection, {**EXECUTED, "result": parameters.get("args")})
        elif command == "upper":
            length = parameters["payload"]["bytes"]
            os.pwrite(descriptors[0], os.pread(descriptors[0], length, 0).upper(), 0)
            reply(connection, {**EXECUTED, "payload": {"bytes": length, "in_request": True}})
        elif command == "own":
            reply_with(connection, {**EXECUTED, "result": 1, "payload": {"bytes": 6}}, b"memory")
        elif command == "json":
            length = parameters["payload"]["bytes"]
            assert parameters["args"] == {"halsup.payload": "json"}
            result = {"result": {"halsup.payload": "json"}, "payload": {"bytes": length}}
            reply_with(connection, {**EXECUTED, **result}, os.pread(descriptors[0], length, 0))
        elif command == "stream":
            assert call["more"] is True and parameters["stream"] is True
            self.stream(connection)
        elif command == "fail":
            failed(connection, **parameters["args"])
        elif command == "hang up":
            connection.shutdown(socket.SHUT_RDWR)
        elif command != "silence":
            reply(connection, {"pool": parameters.get("pool")}, error="io.halsup.Control.NotFound")

    def stream(self, connection):
        reply(connection, {"chunk": 0}, continues=True)
        for word in (b"one", b"two"):
            reply_with(connection, {"chunk": None, "payload": {"bytes": 3}}, word, continues=True)
        reply(connection, {**EXECUTED, "result": "end"})


class WithDaemon(unittest.TestCase):
    def setUp(self):
        self.pool = Pool()
        self.daemon = self.enter(Daemon(self.pool))

    def enter(self, context):
        made = context.__enter__()
        self.addCleanup(context.__exit__, None, None, None)
        return made

    def tearDown(self):
        self.assertEqual(self.daemon.errors, [])


class Calls(WithDaemon):
    def setUp(self):
        super().setUp()
        self.client = self.enter(Client(self.daemon.path))

    def test_a_call_says_what_it_was_given_and_no_more(self):
        said = self.client.call("web", "echo", {"a": 1})
        self.assertEqual((said.result, said.payload, said.worker, said.generation), ({"a": 1}, None, "web.0", 3))
        self.assertEqual((said.queued, said.duration, said.correlation), (1.5, 2.0, "c"))
        self.client.call(
            "web", "echo", session="s", affinity="hint", timeout=1.5, queue_timeout=0, idempotent=True, correlation="k"
        )
        first, second = self.pool.calls
        expected = {"pool": "web", "command": "echo", "args": {"a": 1}}
        self.assertEqual(first, {"method": "io.halsup.Control.Execute", "parameters": expected})
        also = {"session": "s", "affinity": "hint", "timeout_ms": 1500, "queue_timeout_ms": 0, "idempotent": True}
        self.assertEqual(second["parameters"], {"pool": "web", "command": "echo", "correlation": "k", **also})

    def test_one_connection_does_for_one_call_after_the_other_and_threads_have_their_own(self):
        for timeout in (None, 5, 5, None, 5):
            self.client.call("web", "echo", timeout=timeout)
        self.assertEqual(self.daemon.accepted, 1)
        results = []
        threads = [threading.Thread(target=lambda n=n: results.append(self.client.call("web", "echo", n).result))
                   for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_SECONDS)
        self.assertEqual(sorted(results), list(range(8)))

    def test_a_request_that_failed_says_how(self):
        with self.assertRaises(RequestFailed) as raised:
            self.client.call("web", "fail", {"outcome": "never_started", "reason": "pool_saturated"})
        error = raised.exception
        self.assertNotIsInstance(error, ApplicationFailed)
        self.assertEqual((error.outcome, error.category, error.reason), ("never_started", "pool", "pool_saturated"))
        with self.assertRaises(ApplicationFailed) as raised:
            self.client.call("web", "fail", {"outcome": "answered", "reason": "full", "details": [1], "traceback": "t"})
        self.assertEqual((raised.exception.details, raised.exception.traceback), ([1], "t"))
        with self.assertRaises(ControlError) as raised:
            self.client.call("nothing", "nothing")
        self.assertEqual((raised.exception.name, raised.exception.parameters), ("NotFound", {"pool": "nothing"}))
        # None of these was the end of the connection.
        self.assertEqual(self.daemon.accepted, 1)

    def test_a_connection_that_is_lost_leaves_the_request_in_doubt(self):
        with self.assertRaises(RequestFailed) as raised:
            self.client.call("web", "hang up")
        self.assertEqual((raised.exception.outcome, raised.exception.reason), ("in_doubt", "connection_lost"))
        self.assertEqual(self.client.call("web", "echo", 1).result, 1)

    def test_a_connection_that_was_closed_while_idle_is_not_used(self):
        # Two are idle.
        with self.client.stream("web", "stream") as stream:
            self.client.call("web", "echo")
            self.assertEqual(len(list(stream)), 3)
        self.assertEqual(self.daemon.accepted, 2)
        for connection in self.daemon._connections:
            connection.shutdown(socket.SHUT_RDWR)
        self.assertEqual(self.client.call("web", "echo", 1).result, 1)

    def test_without_a_daemon_nothing_has_run(self):
        with self.assertRaises(Unreachable):
            Client("/nowhere/control.sock").call("web", "echo")

    def test_a_daemon_that_does_not_answer_is_given_up_on(self):
        before, halsup._MARGIN_SECONDS = halsup._MARGIN_SECONDS, 0.01
        try:
            with self.assertRaises(RequestFailed) as raised:
                self.client.call("web", "silence", timeout=0.01)
        finally:
            halsup._MARGIN_SECONDS = before
        self.assertEqual((raised.exception.outcome, raised.exception.reason), ("in_doubt", "client_timeout"))

    def test_arguments_that_nobody_could_read_are_not_sent(self):
        for bad in ({1: 2}, float("nan"), "\ud800", 1 << 64):
            with self.assertRaises((ValueError, TypeError)):
                self.client.call("web", "echo", bad)
        self.assertEqual(self.pool.calls, [])


class Memory(WithDaemon):
    def setUp(self):
        super().setUp()
        self.client = self.enter(Client(self.daemon.path))

    def test_bytes_go_there_and_come_back_in_the_same_memory(self):
        for text in (b"abc", bytearray(b"defg"), memoryview(b"h")):
            said = self.client.call("web", "upper", payload=text)
            self.assertEqual(said.payload, bytes(text).upper())
        self.assertEqual(self.pool.calls[0]["parameters"]["payload"], {"bytes": 3, "shared": True})
        self.assertEqual(len(set(self.pool.inodes)), 1, "the buffer is used again")

    def test_what_came_back_stays_when_the_memory_is_used_again(self):
        first = self.client.call("web", "upper", payload=b"abc").payload
        self.client.call("web", "upper", payload=b"xyz")
        self.assertEqual(first, b"ABC")

    def test_an_answer_in_memory_of_its_own_is_read_where_it_is(self):
        before = memories()
        said = self.client.call("web", "own")
        self.assertEqual((said.result, bytes(said.payload), said.payload.readonly), (1, b"memory", True))
        self.assertIsInstance(said.payload.obj, mmap.mmap)
        del said
        gc.collect()
        # The daemon is done with the last call when it answers the next.
        self.client.call("web", "echo")
        self.assertEqual(memories(), before)

    def test_a_buffer_is_lent_without_a_copy_and_used_again(self):
        with self.client.buffer(100_000) as buffer:
            buffer.view[:3] = b"abc"
            buffer.length = 3
            said = self.client.call("web", "upper", payload=buffer)
            self.assertEqual(said.payload, b"ABC")
            self.assertEqual(buffer.view[:3], b"ABC")
            payload = said.payload
        with self.assertRaises(ValueError):
            payload[0]
        with self.client.buffer(100_000) as again:
            self.assertIs(again, buffer)

    def test_a_buffer_that_somebody_still_looks_at_is_not_used_again(self):
        for look in (lambda view: view[1:2], memoryview, lambda view: view[1:5][1:2]):
            with self.client.buffer(100_000) as buffer:
                kept = look(buffer.view)
            with self.client.buffer(100_000) as another:
                self.assertIsNot(another, buffer)
            self.assertEqual(bytes(kept)[:1], b"\0")

    def test_a_buffer_whose_answer_is_in_doubt_is_not_used_again(self):
        self.client.call("web", "upper", payload=b"abc")
        for command, args in (("hang up", None), ("fail", {"outcome": "in_doubt", "reason": "worker_exit"})):
            with self.assertRaises(RequestFailed):
                self.client.call("web", command, args, payload=b"abc")
            self.client.call("web", "upper", payload=b"abc")
        with self.assertRaises(RequestFailed):
            self.client.call("web", "fail", {"outcome": "never_started", "reason": "queue_timeout"}, payload=b"abc")
        self.client.call("web", "upper", payload=b"abc")
        used = self.pool.inodes
        self.assertEqual(used[0], used[1], "lent again")
        self.assertEqual(used[2], used[3], "another, and that again")
        self.assertEqual(used[4:], [used[4]] * 3, "what never started is in no doubt")
        self.assertEqual(len(set(used)), 3)

    def test_what_is_kept_is_bounded(self):
        client = self.enter(Client(self.daemon.path, buffer_bytes_max=3 << 16))
        before = memories()
        buffers = [client.buffer(1) for _ in range(9)]
        for buffer in buffers:
            with buffer:
                pass
        del buffers, buffer
        gc.collect()
        # Each has a descriptor of its own, and one that its mapping holds.
        self.assertEqual(memories() - before, 3 * 2)

    def test_arguments_and_results_that_are_too_long_are_payloads(self):
        args = {"text": "x" * 100_000}
        said = self.client.call("web", "json", args)
        self.assertEqual((said.result, said.payload), (args, None))

    def test_memory_that_may_still_change_is_not_read(self):
        def answer(call, descriptors, connection):
            reply_with(connection, {**EXECUTED, "payload": {"bytes": 6}}, b"memory", FIXED)

        client = self.enter(Client(self.enter(Daemon(answer)).path))
        with self.assertRaises(InvalidPayload):
            client.call("web", "anything")

    def test_a_payload_without_memory_is_an_error(self):
        for payload in ({"bytes": 6}, {"bytes": 6, "in_request": True}):
            daemon = self.enter(Daemon(lambda call, _, connection: reply(connection, {**EXECUTED, "payload": payload})))
            with self.assertRaises(halsup.HalsupError):
                self.enter(Client(daemon.path)).call("web", "anything")


class Streams(WithDaemon):
    def setUp(self):
        super().setUp()
        self.client = self.enter(Client(self.daemon.path))

    def test_chunks_come_with_their_memory_and_the_answer_at_the_end(self):
        stream = self.client.stream("web", "stream")
        chunks = [(chunk.data, chunk.payload and bytes(chunk.payload)) for chunk in stream]
        self.assertEqual(chunks, [(0, None), (None, b"one"), (None, b"two")])
        self.assertEqual(stream.reply.result, "end")
        self.assertEqual(list(stream), [])
        self.client.call("web", "echo")
        self.assertEqual(self.daemon.accepted, 1)

    def test_a_stream_that_is_left_closes_its_connection(self):
        before = memories()
        with self.client.stream("web", "stream") as stream:
            self.assertEqual(next(stream).data, 0)
        self.assertIsNone(stream.reply)
        # The daemon's side of it has ended, and closed what it had in hand.
        self.daemon.threads[0].join(DEADLINE_SECONDS)
        self.client.call("web", "echo")
        self.assertEqual(self.daemon.accepted, 2)
        self.assertLessEqual(memories(), before, "what was not read is closed too")

    def test_a_stream_may_fail_at_its_end(self):
        def answer(call, descriptors, connection):
            reply(connection, {"chunk": 0}, continues=True)
            failed(connection, outcome="in_doubt", reason="worker_exit")

        stream = self.enter(Client(self.enter(Daemon(answer)).path)).stream("web", "anything")
        self.assertEqual(next(stream).data, 0)
        with self.assertRaises(RequestFailed):
            next(stream)


class Others(unittest.TestCase):
    def test_the_other_methods_say_what_they_were_given(self):
        said = []

        def answer(call, descriptors, connection):
            said.append((call["method"].rsplit(".", 1)[1], call["parameters"]))
            reached = call["parameters"].get("pool") != "down"
            common = {"requests": [{"request": "r"}], "reached": reached, "failures": [{"worker": "down.0", "reason": "no"}]}
            if call["parameters"].get("pool") != "late":
                reply(connection, {"session": "s", "sessions": [], "pools": [{"pool": "web"}], **common})

        with Daemon(answer) as daemon, Client(daemon.path) as client:
            self.assertEqual(client.open_session("web", ttl=60), "s")
            client.close_session("web", "s")
            self.assertEqual(client.list_sessions(), [])
            self.assertEqual(client.pool_stats("web"), [{"pool": "web"}])
            self.assertEqual(client.request_status("r"), [{"request": "r"}])
            client.wait_pool(complete=True, timeout=DEADLINE_SECONDS)
            with self.assertRaisesRegex(halsup.HalsupError, "down.0: no"):
                client.wait_pool("down")
            with self.assertRaises(TimeoutError):
                client.wait_pool("late", timeout=0.01)
        expected = [
            ("OpenSession", {"pool": "web", "ttl_ms": 60_000}),
            ("CloseSession", {"pool": "web", "session": "s"}),
            ("ListSessions", {}),
            ("PoolStats", {"pool": "web"}),
            ("RequestStatus", {"request": "r"}),
            ("WaitPool", {"complete": True}),
            ("WaitPool", {"pool": "down"}),
            ("WaitPool", {"pool": "late"}),
        ]
        self.assertEqual(said, expected)

    def test_tools_of_the_supervisor_are_served(self):
        replied, done = [], threading.Event()

        def answer(call, descriptors, connection):
            parameters = call["parameters"]
            if call["method"].endswith("ServeTools"):
                assert call["more"] is True and parameters == {"pool": "web", "tools": ["add", "fail"]}
                common = {"request": "r", "worker": "web.0"}
                reply(connection, {}, continues=True)
                reply(connection, {"call": "1", "tool": "add", "args": [1, 2], **common}, continues=True)
                reply(connection, {"call": "2", "tool": "fail", "args": None, **common}, continues=True)
            else:
                replied.append(parameters)
                reply(connection, {})
                if len(replied) == 2:
                    done.set()

        def fail(call):
            raise halsup.ToolError(f"no {call.worker}", reason="no")

        with Daemon(answer) as daemon, Client(daemon.path) as client:
            with client.serve_tools("web", {"add": lambda call: sum(call.args), "fail": fail}) as server:
                self.assertTrue(done.wait(DEADLINE_SECONDS))
            self.assertIsNone(server.error)
        replied.sort(key=lambda parameters: parameters["call"])
        failure = {"pool": "web", "call": "2", "error": {"reason": "no", "message": "no web.0"}}
        self.assertEqual(replied, [{"pool": "web", "call": "1", "result": 3}, failure])


class Taker:
    """A daemon whose worker takes so many chunks of an input, or all, and answers with what it was sent."""

    def __init__(self, most=None):
        self.most = most
        self.taken = []
        self.ended = threading.Event()
        self.answered = False

    def __call__(self, call, descriptors, connection):
        parameters = call["parameters"]
        if call["method"].endswith("Execute"):
            self.taken, self.answered = [], False
            self.executed = call
            return
        assert call["method"] == "io.halsup.Control.SendChunk" and call["oneway"] is True, call
        if self.answered:
            return
        memory = [os.pread(fd, parameters["payload"]["bytes"], 0).decode() for fd in descriptors]
        if parameters.get("end"):
            assert parameters == {"end": True} and not descriptors
            self.ended.set()
            self.answer(connection)
        else:
            self.taken.append([parameters.get("chunk"), *memory])
            if len(self.taken) == self.most:
                self.answer(connection)

    def answer(self, connection):
        self.answered = True
        reply(connection, {**EXECUTED, "result": self.taken, "bill": {"cpu_usec": 1}})


class Inputs(unittest.TestCase):
    def see_it_go(self, daemon):
        """Waits until the daemon has seen the client's connections go."""
        until = time.monotonic() + DEADLINE_SECONDS
        while not daemon.threads or any(thread.is_alive() for thread in daemon.threads):
            self.assertLess(time.monotonic(), until, "a connection is still there")
            time.sleep(0.001)

    def test_what_is_iterated_over_is_sent_and_then_its_end(self):
        taker = Taker()
        with Daemon(taker) as daemon, Client(daemon.path) as client:
            before = memories()
            given = [1, None, {"a": [2]}, b"bytes", halsup.Answer("of", b"both"), "x" * 70_000]
            said = client.call("web", "take", input=iter(given), bill=True)
            long = [{"halsup.payload": "json"}, '"' + "x" * 70_000 + '"']
            expected = [[1], [None], [{"a": [2]}], [None, "bytes"], ["of", "both"], long]
            self.assertEqual((said.result, said.bill), (expected, {"cpu_usec": 1}))
            executed = {"pool": "web", "command": "take", "bill": True, "input": True}
            self.assertEqual(taker.executed["parameters"], executed)
            self.assertEqual(client.call("web", "take", input=()).result, [])
            with client.stream("web", "take", input=range(3)) as stream:
                self.assertEqual(list(stream), [])
            self.assertEqual((stream.reply.result, daemon.accepted), ([[0], [1], [2]], 1))
            self.assertEqual(memories(), before)
        self.assertEqual(daemon.errors, [])

    def test_nothing_is_sent_when_the_answer_is_there(self):
        taker, asked = Taker(most=2), threading.Event()

        def numbers():
            yield from (1, 2)
            # Whoever makes it waits for something that does not come.
            asked.wait(DEADLINE_SECONDS)
            yield 3

        with Daemon(taker) as daemon, Client(daemon.path) as client:
            self.assertEqual(client.call("web", "take", input=numbers()).result, [[1], [2]])
            asked.set()
            taker.most = 1
            self.assertEqual(client.call("web", "take", input=iter("a")).result, [["a"]])
        self.assertEqual(daemon.errors, [])

    def test_an_input_that_fails_gives_the_request_up_and_is_raised(self):
        def numbers():
            yield 1
            raise KeyError("no more")

        for method in ("call", "stream"):
            with Daemon(Taker()) as daemon, Client(daemon.path) as client:
                with self.assertRaisesRegex(KeyError, "no more"):
                    list(getattr(client, method)("web", "take", input=numbers()))
                with self.assertRaises(TypeError):
                    list(getattr(client, method)("web", "take", input=[object()]))
                self.see_it_go(daemon)
            self.assertEqual(daemon.errors, [])

    def test_a_stream_that_is_left_ends_its_input(self):
        closed = threading.Event()

        def numbers():
            try:
                yield from iter(lambda: 1, None)
            finally:
                closed.set()

        with Daemon(Taker()) as daemon, Client(daemon.path) as client:
            with client.stream("web", "take", input=numbers()):
                pass
            self.assertTrue(closed.wait(DEADLINE_SECONDS))
            self.see_it_go(daemon)

    def test_a_loop_sends_what_is_made_on_it(self):
        async def numbers(count, error=None):
            for number in range(count):
                yield number
            if error is not None:
                raise error

        async def main(path):
            async with AsyncClient(path) as client:
                said = await client.call("web", "take", input=numbers(3), bill=True)
                self.assertEqual((said.result, said.bill), ([[0], [1], [2]], {"cpu_usec": 1}))
                self.assertEqual((await client.call("web", "take", input="ab")).result, [["a"], ["b"]])
                async with await client.stream("web", "take", input=numbers(2)) as stream:
                    self.assertEqual([chunk async for chunk in stream], [])
                self.assertEqual(stream.reply.result, [[0], [1]])
                with self.assertRaisesRegex(KeyError, "no more"):
                    await client.call("web", "take", input=numbers(2, KeyError("no more")))
                task = asyncio.ensure_future(client.call("web", "take", input=numbers(10**9)))
                while not taker.taken:
                    await asyncio.sleep(0)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task

        taker = Taker()
        with Daemon(taker) as daemon:
            asyncio.run(main(daemon.path))
        self.assertEqual(daemon.errors, [])


class Async(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.pool = Pool()
        self.daemon = Daemon(self.pool)
        self.client = AsyncClient(self.daemon.path)

    async def asyncTearDown(self):
        await self.client.close()
        self.daemon.__exit__()
        self.assertEqual(self.daemon.errors, [])

    async def test_calls_overlap_on_connections_of_their_own(self):
        said = await asyncio.gather(*(self.client.call("web", "echo", number) for number in range(8)))
        self.assertEqual([one.result for one in said], list(range(8)))
        accepted = self.daemon.accepted
        await self.client.call("web", "echo")
        self.assertEqual(self.daemon.accepted, accepted)

    async def test_bytes_and_errors_are_the_same(self):
        said = await self.client.call("web", "upper", payload=b"abc")
        self.assertEqual(said.payload, b"ABC")
        said = await self.client.call("web", "json", {"text": "x" * 100_000})
        self.assertEqual(len(said.result["text"]), 100_000)
        with self.assertRaises(ApplicationFailed):
            await self.client.call("web", "fail", {"outcome": "answered", "reason": "full"})
        with self.assertRaises(RequestFailed):
            await self.client.call("web", "hang up")
        with self.assertRaises(Unreachable):
            await AsyncClient("/nowhere/control.sock").call("web", "echo")

    async def test_a_stream_is_iterated_over(self):
        async with await self.client.stream("web", "stream") as stream:
            chunks = [(chunk.data, chunk.payload and bytes(chunk.payload)) async for chunk in stream]
        self.assertEqual(chunks, [(0, None), (None, b"one"), (None, b"two")])
        self.assertEqual(stream.reply.result, "end")

    async def test_a_task_that_is_cancelled_closes_its_connection(self):
        task = asyncio.ensure_future(self.client.call("web", "silence", payload=b"abc"))
        while not self.pool.inodes:
            await asyncio.sleep(0)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        await self.client.call("web", "upper", payload=b"abc")
        self.assertEqual(self.daemon.accepted, 2)
        self.assertEqual(len(set(self.pool.inodes)), 2, "memory that a worker may still write is not used again")

    async def test_a_daemon_that_does_not_answer_is_given_up_on(self):
        before, halsup._MARGIN_SECONDS = halsup._MARGIN_SECONDS, 0.01
        try:
            with self.assertRaises(RequestFailed) as raised:
                await self.client.call("web", "silence", timeout=0.01)
        finally:
            halsup._MARGIN_SECONDS = before
        self.assertEqual(raised.exception.reason, "client_timeout")

    async def test_tools_are_served_until_the_task_is_cancelled(self):
        replied = asyncio.Event()
        loop, said = asyncio.get_running_loop(), []

        def answer(call, descriptors, connection):
            if call["method"].endswith("ServeTools"):
                reply(connection, {}, continues=True)
                reply(connection, {"call": "1", "tool": "add", "args": [1, 2], "request": "", "worker": ""}, continues=True)
            else:
                said.append(call["parameters"])
                reply(connection, {})
                loop.call_soon_threadsafe(replied.set)

        async def add(call):
            return sum(call.args)

        with Daemon(answer) as daemon:
            async with AsyncClient(daemon.path) as client:
                serving = asyncio.ensure_future(client.serve_tools("web", {"add": add}))
                await asyncio.wait_for(replied.wait(), DEADLINE_SECONDS)
                serving.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await serving
        self.assertEqual(said, [{"pool": "web", "call": "1", "result": 3}])


if __name__ == "__main__":
    unittest.main()
