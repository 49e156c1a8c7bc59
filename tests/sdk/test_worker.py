"""What a worker does that is written with the SDK: a real process, and halsup's side of its channel played frame by frame."""

import json
import os
import signal
import unittest

from play import DEADLINE_SECONDS, IMMUTABLE, SDK, Worker, memfd


class Requests(unittest.TestCase):
    def test_a_request_is_answered_with_what_the_tool_returns(self):
        with Worker() as worker:
            for value in (None, True, -1, 1.5, "é\n", [], {"a": [None, {"b": "c"}]}, (1 << 64) - 1):
                answer = worker.ask("echo", value)
                self.assertEqual(answer["kind"], "result")
                self.assertEqual(answer.get("result"), value)
                self.assertLessEqual(answer.keys(), {"kind", "id", "result"})

    def test_a_tool_sees_what_the_request_says(self):
        with Worker() as worker:
            answer = worker.ask("who am i", deadline_ms=50_000, session="s", correlation="c", stream=True, credit=1)
            said = answer["result"]
            self.assertTrue(0 < said.pop("remaining") <= 50)
            expected = {"id": answer["id"], "command": "who am i", "session": "s", "correlation": "c", "streaming": True}
            self.assertEqual(said, expected)
            self.assertIsNone(worker.ask("who am i")["result"]["remaining"])

    def test_as_many_requests_as_the_capacity_overlap(self):
        for capacity in (1, 8):
            with Worker(HALSUP_CAPACITY=str(capacity)) as worker:
                begun = {worker.begin("meet") for _ in range(capacity)}
                answers = [worker.hear("result") for _ in range(capacity)]
                self.assertEqual({answer["id"] for answer in answers}, begun)
                self.assertEqual(len({answer["result"] for answer in answers}), capacity)

    def test_a_worker_that_is_busy_answers_pings(self):
        for tool in ("hold", "hold_async"):
            with Worker() as worker:
                worker.begin(tool)
                worker.hear("event", event="holding")
                worker.is_alive()

    def test_an_event_is_told(self):
        with Worker() as worker:
            number = worker.begin("tell")
            worker.hear("event", event="something", measurements={"count": 1}, metadata={"of": "it"})
            worker.hear("result", id=number)

    def test_async_tools_run_on_the_loop_of_whoever_serves(self):
        with Worker("--async", HALSUP_CAPACITY="2") as worker:
            self.assertEqual(worker.ask("echo", 1)["result"], 1)
            number = worker.begin("ask_async", 2)
            call = worker.hear("call", id=number, tool="tool", args=2)
            worker.say(kind="reply", call=call["call"], result=3)
            worker.hear("result", id=number, result=3)


class Errors(unittest.TestCase):
    def test_an_error_that_a_tool_means_is_said_as_it_is_meant(self):
        with Worker() as worker:
            error = worker.ask("fail")["error"]
            meant = {"message": "it is full", "reason": "full", "category": "disk", "details": {"free": 0}}
            self.assertEqual(error, meant)

    def test_any_other_exception_comes_with_its_traceback(self):
        with Worker() as worker:
            error = worker.ask("crash")["error"]
            self.assertEqual((error["reason"], error["category"]), ("KeyError", "python_error"))
            self.assertIn("worker.py", error["traceback"])
            self.assertIn("missing ", error["message"])

    def test_an_error_that_is_too_long_is_shortened(self):
        with Worker() as worker:
            for length in (40_000, 1_000_000):
                error = worker.ask("crash", length)["error"]
                self.assertEqual(error["reason"], "KeyError")
                self.assertLessEqual(len(error["message"]), 16 * 1024)
                self.assertTrue(0 < len(error["traceback"]) <= 32 * 1024)

    def test_a_tool_cannot_end_the_worker(self):
        with Worker() as worker:
            self.assertEqual(worker.ask("leave")["error"]["reason"], "SystemExit")
            worker.is_alive()

    def test_a_result_that_nobody_could_read_is_an_error(self):
        with Worker() as worker:
            for kind in ("object", "nan", "surrogate", "twice", "deep", "deep object", "large", "beside", "place"):
                answer = worker.ask("bad", kind)
                self.assertEqual(answer["kind"], "error", kind)
            worker.is_alive()

    def test_a_command_that_there_is_no_tool_for_is_an_error(self):
        with Worker() as worker:
            self.assertEqual(worker.ask("nothing")["error"]["reason"], "unknown_command")

    def test_junk_is_passed_over(self):
        junk = [
            b"x",
            b"\xff\xfe",
            b"[]",
            b"1",
            b"{}",
            b'{"kind":[]}',
            b'{"kind":"later"}',
            b'{"kind":"ping"}',
            b'{"kind":"request"}',
            b'{"kind":"request","id":"AB","command":"echo"}',
            b'{"kind":"request","id":7,"command":"echo"}',
            b'{"kind":"request","id":"00000000000000ab","command":7}',
            b'{"kind":"request","id":"00000000000000ab","command":"echo","deadline_ms":"x"}',
            b'{"kind":"cancel","id":[]}',
            b'{"kind":"cancel","id":"00000000000000ab"}',
            b'{"kind":"credit","id":"00000000000000ab","count":-1}',
            b'{"kind":"reply","call":{}}',
            b'{"kind":"reply","call":99}',
            b"[" * 60_000,
            b" " * 65_537,
            b'{"kind":"ping","id":1}' + b" " * 65_537,
            b'{"kind":"ping","id":' + b"1" * 60_000 + b"}",
        ]
        with Worker() as worker:
            before = worker.ask("mapped")["result"]["open"]
            for message in junk:
                read, write = os.pipe()
                worker.say_raw(message, read, write)
                os.close(read)
                os.close(write)
            worker.is_alive()
            self.assertEqual(worker.ask("echo", "still")["result"], "still")
            self.assertEqual(worker.ask("mapped")["result"]["open"], before)

    def test_an_id_that_is_in_flight_already_is_not_begun_again(self):
        with Worker(HALSUP_CAPACITY="2") as worker:
            number = worker.begin("ask")
            call = worker.hear("call", id=number)
            worker.say(kind="request", id=number, command="echo")
            worker.is_alive()
            worker.say(kind="reply", call=call["call"], result=1)
            worker.hear("result", id=number, result=1)

    def test_a_supervisor_of_another_protocol_is_not_served(self):
        with Worker() as worker:
            worker.say(kind="hello", protocol=2)
            self.assertEqual(worker.ends()[0], 0)


class Calls(unittest.TestCase):
    def test_a_tool_calls_back_and_gets_the_reply(self):
        with Worker(HALSUP_CAPACITY="2") as worker:
            first, second = worker.begin("ask", {"n": 1}), worker.begin("ask", {"n": 2})
            calls = {call["id"]: call["call"] for call in (worker.hear("call", tool="tool") for _ in range(2))}
            # The other way round: a reply goes to its own call.
            worker.say(kind="reply", call=calls[second], result="second")
            worker.hear("result", id=second, result="second")
            worker.say(kind="reply", call=calls[first], error={"reason": "gone", "message": "no such tool"})
            worker.hear("result", id=first, result={"reason": "gone", "message": "no such tool"})

    def test_a_reply_that_comes_too_late_is_passed_over(self):
        with Worker() as worker:
            number = worker.begin("impatient")
            call = worker.hear("call", id=number)
            self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "CallFailed")
            worker.say(kind="reply", call=call["call"], result=1)
            worker.is_alive()

    def test_a_call_ends_with_its_request(self):
        for tool in ("ask", "ask_async"):
            with Worker() as worker:
                number = worker.begin(tool)
                worker.hear("call", id=number)
                worker.say(kind="cancel", id=number)
                self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "cancelled")


class Streams(unittest.TestCase):
    def test_no_more_chunks_come_than_were_granted(self):
        for tool in ("count", "count_async"):
            with Worker(HALSUP_CAPACITY="2") as worker:
                number = worker.begin(tool, 5, stream=True, credit=2)
                for chunk in range(2):
                    worker.hear("chunk", id=number, data=chunk)
                worker.is_alive()
                # A reader that stalls holds up its own stream alone.
                other = worker.begin(tool, 3, stream=True, credit=3)
                for chunk in range(3):
                    worker.hear("chunk", id=other, data=chunk)
                worker.hear("event", event="cleaned")
                worker.hear("result", id=other)
                worker.is_alive()
                for chunk in range(2, 5):
                    worker.say(kind="credit", id=number, count=1)
                    worker.hear("chunk", id=number, data=chunk)
                worker.hear("event", event="cleaned")
                worker.hear("result", id=number)

    def test_what_a_generator_returns_is_the_answer(self):
        with Worker() as worker:
            number = worker.begin("count", 0, stream=True)
            worker.hear("event", event="cleaned")
            worker.hear("result", id=number, result="counted")

    def test_ten_thousand_chunks_come_in_order(self):
        with Worker() as worker:
            number = worker.begin("count", 10_000, stream=True, credit=64)
            for chunk in range(10_000):
                worker.hear("chunk", id=number, data=chunk)
                if chunk % 32 == 31:
                    worker.say(kind="credit", id=number, count=32)
            worker.hear("event", event="cleaned")
            worker.hear("result", id=number)

    def test_a_stream_that_is_not_asked_for_is_a_list(self):
        with Worker() as worker:
            for tool in ("count", "count_async"):
                number = worker.begin(tool, 3)
                worker.hear("event", event="cleaned")
                worker.hear("result", id=number, result=[0, 1, 2])

    def test_chunks_are_json_or_bytes_or_both(self):
        with Worker() as worker:
            number = worker.begin("pieces", stream=True, credit=9)
            read = []
            for _ in range(3):
                frame, (fd,) = worker.hear_with()
                self.assertEqual((frame["kind"], frame["id"]), ("chunk", number))
                read.append((frame.get("data"), os.read(fd, frame["payload"]["bytes"])))
                os.close(fd)
            worker.hear("result", id=number)
            self.assertEqual(read[:2], [(None, b"bytes"), ({"of": "both"}, b"both")])
            self.assertEqual(read[2][0], {"halsup.payload": "json"})
            self.assertEqual(json.loads(read[2][1]), "x" * 70_000)


class Inputs(unittest.TestCase):
    def begin(self, worker, tool):
        """A request that takes input, when it has asked for the first of it."""
        number = worker.begin(tool, input=True)
        worker.hear("credit", id=number, count=8)
        return number

    def test_what_the_caller_sends_is_given_out_in_its_order_and_asked_for_as_it_is_taken(self):
        for tool in ("gather", "gather_async"):
            with Worker() as worker:
                number = self.begin(worker, tool)
                granted = 8
                # The end needs a credit as well.
                for said in [*({"data": sent} for sent in range(100)), {"end": True}]:
                    while granted == 0:
                        granted += worker.hear("credit", id=number)["count"]
                    worker.say(kind="chunk", id=number, **said)
                    granted -= 1
                said = []
                while (frame := worker.hear_with()[0])["kind"] == "credit":
                    said.append(frame["count"])
                self.assertEqual(frame["kind"], "event")
                worker.hear("result", id=number, result=list(range(100)))
                # Never more than eight are on their way and waiting together.
                self.assertLessEqual(granted + sum(said), 8)

    def test_a_chunk_with_the_end_is_one_and_one_with_nothing_else_is_none(self):
        with Worker() as worker:
            number = self.begin(worker, "gather")
            worker.say(kind="chunk", id=number)
            worker.say(kind="chunk", id=number, data=None)
            worker.say(kind="chunk", id=number, data=None, end=True)
            worker.hear("event", event="cleaned")
            worker.hear("result", id=number, result=[None, None, None])
            self.assertIsNone(worker.ask("gather").get("result"))

    def test_chunks_are_memory_too(self):
        with Worker() as worker:
            number = self.begin(worker, "gather")
            worker.say(memfd(b"abc", IMMUTABLE), kind="chunk", id=number, data="of", payload={"bytes": 2})
            text = b'"' + b"x" * 70_000 + b'"'
            fd = memfd(text, IMMUTABLE)
            worker.say(fd, kind="chunk", id=number, data={"halsup.payload": "json"}, payload={"bytes": len(text)}, end=True)
            worker.hear("event", event="cleaned")
            frame, (fd,) = worker.hear_with()
            self.assertEqual(frame["result"], {"halsup.payload": "json"})
            self.assertEqual(json.loads(os.read(fd, 1 << 20)), [["of", 2], "x" * 70_000])

    def test_what_is_no_memory_ends_the_input_with_an_error(self):
        with Worker() as worker:
            number = self.begin(worker, "gather")
            worker.say(kind="chunk", id=number, data=1)
            worker.say(memfd(b"abc", 0), kind="chunk", id=number, payload={"bytes": 2})
            worker.hear("event", event="cleaned")
            self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "InvalidPayload")
            number = self.begin(worker, "gather")
            worker.say(kind="chunk", id=number, payload={"bytes": 2})
            worker.hear("event", event="cleaned")
            self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "InvalidPayload")

    def test_what_was_not_asked_for_is_passed_over(self):
        with Worker(HALSUP_CAPACITY="2") as worker:
            worker.say(kind="chunk", id="0" * 16, data=1)
            other = worker.begin("ask")
            call = worker.hear("call", id=other)
            worker.say(kind="chunk", id=other, data=1)
            # It waits for the other, and nobody has asked for any of this.
            late = worker.begin("mirror", input=True, stream=True)
            worker.hear("credit", id=late, count=8)
            for sent in range(9):
                worker.say(kind="chunk", id=late, data=sent)
            worker.is_alive()
            worker.say(kind="credit", id=late, count=100)
            read = [worker.hear_with()[0] for _ in range(10)]
            self.assertEqual([frame["data"] for frame in read if frame["kind"] == "chunk"], list(range(8)))
            self.assertEqual([frame["count"] for frame in read if frame["kind"] == "credit"], [4, 4])
            worker.say(kind="chunk", id=late, end=True)
            worker.say(kind="chunk", id=late, data="behind the last")
            worker.hear("result", id=late)
            worker.say(kind="reply", call=call["call"], result=1)
            worker.hear("result", id=other, result=1)

    def test_whoever_waits_for_more_is_cancelled_and_cleans_up(self):
        for tool in ("gather", "gather_async"):
            with Worker() as worker:
                number = self.begin(worker, tool)
                worker.say(kind="chunk", id=number, data=1)
                worker.say(kind="cancel", id=number)
                worker.hear("event", event="cleaned")
                self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "cancelled")
                self.assertEqual(worker.ask("echo", 1)["result"], 1)


class Cancellation(unittest.TestCase):
    def test_whoever_is_cancelled_cleans_up_and_says_so(self):
        for tool in ("hold", "hold_async"):
            with Worker() as worker:
                number = worker.begin(tool)
                worker.hear("event", event="holding")
                worker.say(kind="cancel", id=number)
                worker.hear("event", event="cleaned")
                self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "cancelled")
                # Its thread is free again.
                self.assertEqual(worker.ask("echo", 1)["result"], 1)

    def test_a_stream_that_waits_for_its_reader_is_cancelled_too(self):
        for tool in ("count", "count_async"):
            with Worker() as worker:
                number = worker.begin(tool, 5, stream=True, credit=1)
                worker.hear("chunk", id=number, data=0)
                worker.say(kind="cancel", id=number)
                worker.hear("event", event="cleaned")
                self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "cancelled")

    def test_a_request_that_is_cancelled_before_its_turn_does_not_run(self):
        with Worker() as worker:
            first = worker.begin("ask")
            call = worker.hear("call", id=first)
            second = worker.begin("tell")
            worker.say(kind="cancel", id=second)
            worker.is_alive()
            worker.say(kind="reply", call=call["call"], result=1)
            worker.hear("result", id=first)
            self.assertEqual(worker.hear("error", id=second)["error"]["reason"], "cancelled")

    def test_a_result_that_is_wanted_no_more_is_not_sent(self):
        with Worker() as worker:
            number = worker.begin("deaf")
            worker.hear("event", event="deaf")
            worker.say(kind="cancel", id=number)
            worker.is_alive()
            worker.process.stdin.write("\n")
            worker.process.stdin.flush()
            self.assertEqual(worker.hear("error", id=number)["error"]["reason"], "cancelled")


class Ends(unittest.TestCase):
    def ends_when(self, ask_to_end, *arguments):
        """What is in flight is finished, then the worker ends by itself."""
        for tool in ("ask", "ask_async"):
            with Worker(*arguments) as worker:
                number = worker.begin(tool)
                call = worker.hear("call", id=number)
                ask_to_end(worker)
                worker.is_alive()
                worker.say(kind="reply", call=call["call"], result="finished")
                worker.hear("result", id=number, result="finished")
                self.assertEqual(worker.ends(), (0, "ended"))
        with Worker(*arguments) as worker:
            ask_to_end(worker)
            self.assertEqual(worker.ends(), (0, "ended"))

    def test_drained_it_finishes_and_ends(self):
        self.ends_when(lambda worker: worker.say(kind="drain"))
        self.ends_when(lambda worker: worker.say(kind="drain"), "--async")

    def test_asked_by_sigterm_it_finishes_and_ends(self):
        self.ends_when(lambda worker: worker.process.send_signal(signal.SIGTERM))
        self.ends_when(lambda worker: worker.process.send_signal(signal.SIGTERM), "--async")

    def test_a_second_sigterm_ends_it_at_once(self):
        with Worker() as worker:
            number = worker.begin("ask")
            worker.hear("call", id=number)
            worker.process.send_signal(signal.SIGTERM)
            worker.is_alive()
            worker.process.send_signal(signal.SIGTERM)
            self.assertEqual(worker.ends()[0], -signal.SIGTERM)

    def test_left_alone_it_cancels_and_ends(self):
        for arguments in ((), ("--async",)):
            for tool in ("hold", "hold_async"):
                with Worker(*arguments) as worker:
                    worker.begin(tool)
                    worker.hear("event", event="holding")
                    worker.channel.close()
                    status, printed = worker.ends()
                    self.assertEqual((status, printed.split()[-2:]), (0, ["cleaned", "ended"]))

    def test_what_a_new_supervisor_does_not_know_is_forgotten(self):
        with Worker(HALSUP_CAPACITY="2") as worker:
            worker.begin("hold")
            worker.hear("event", event="holding")
            worker.begin("hold_async")
            worker.hear("event", event="holding")
            worker.say(kind="forget")
            for _ in range(2):
                worker.hear("event", event="cleaned")
            worker.hear("ready")
            worker.is_alive()
            self.assertEqual(worker.ask("echo", 1)["result"], 1)

    def test_with_nothing_to_forget_it_is_ready_at_once(self):
        with Worker() as worker:
            worker.say(kind="forget")
            worker.hear("ready")
            worker.is_alive()

    def test_without_a_channel_it_says_what_is_missing(self):
        import subprocess
        import sys

        environment = {key: value for key, value in os.environ.items() if key != "HALSUP_CHANNEL_FD"}
        ended = subprocess.run(
            [sys.executable, "-c", "import halsup; halsup.serve()"],
            env=dict(environment, PYTHONPATH=SDK),
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        self.assertIn("HALSUP_CHANNEL_FD is not set", ended.stderr)


if __name__ == "__main__":
    unittest.main()
