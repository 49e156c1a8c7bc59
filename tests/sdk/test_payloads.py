"""Memory that a worker is sent, lent and sends: what it takes, what it refuses, and that nothing is kept for ever."""

import fcntl
import os
import unittest

from play import F_GET_SEALS, FIXED, FUTURE_WRITE, GROW, IMMUTABLE, SEAL, SHRINK, WRITE, Worker, memfd


class Immutable(unittest.TestCase):
    def test_bytes_come_in_and_go_out_as_memory_that_nobody_can_change(self):
        with Worker() as worker:
            fd = memfd(b"abcdef", IMMUTABLE)
            number = worker.begin("backwards", None, fd, payload={"bytes": 3})
            frame, (answer,) = worker.hear_with()
            self.assertEqual((frame["kind"], frame["id"], frame["payload"]), ("result", number, {"bytes": 3}))
            self.assertEqual(fcntl.fcntl(answer, F_GET_SEALS) & IMMUTABLE, IMMUTABLE)
            self.assertEqual((os.fstat(answer).st_size, os.read(answer, 9)), (3, b"cba"))
            self.assertEqual(worker.ask("length", None, fd, payload={"bytes": 6})["result"], [6, True])
            self.assertEqual(worker.ask("length", None, memfd(b"", IMMUTABLE), payload={"bytes": 0})["result"], [0, True])
            self.assertIsNone(worker.ask("length").get("result"))

    def test_json_that_is_too_long_for_a_frame_goes_as_a_payload(self):
        for threshold, length in (({}, 70_000), ({"HALSUP_ZERO_COPY_BYTES": "100"}, 101)):
            with Worker(**threshold) as worker:
                text = "x" * (length - 2)
                fd = memfd(b'"' + text.encode() + b'"', IMMUTABLE)
                worker.begin("echo", {"halsup.payload": "json"}, fd, payload={"bytes": length})
                frame, (answer,) = worker.hear_with()
                self.assertEqual(frame["result"], {"halsup.payload": "json"})
                self.assertEqual(os.read(answer, 1 << 20), b'"' + text.encode() + b'"')
                # One byte less is not too long where that was the limit.
                if threshold:
                    self.assertEqual(worker.ask("echo", "x" * 98)["result"], "x" * 98)


class Lent(unittest.TestCase):
    def test_an_answer_is_written_where_the_question_was(self):
        with Worker() as worker:
            fd = memfd(b"abcdef" + bytes(90), FIXED)
            answer = worker.ask("backwards", None, fd, payload={"bytes": 6, "shared": True})
            self.assertEqual(answer["payload"], {"bytes": 6, "in_request": True})
            self.assertEqual(answer["result"], {"readonly": False})
            self.assertEqual(os.read(fd, 7), b"fedcba\0")

    def test_bytes_that_fit_are_put_into_it(self):
        with Worker() as worker:
            fd = memfd(bytes(100), FIXED)
            answer = worker.ask("large", 100, fd, payload={"bytes": 0, "shared": True})
            self.assertEqual(answer["payload"], {"bytes": 100, "in_request": True})
            self.assertEqual(os.read(fd, 101), b"z" * 100)
            worker.begin("large", 101, fd, payload={"bytes": 0, "shared": True})
            frame, (own,) = worker.hear_with()
            self.assertEqual(frame["payload"], {"bytes": 101})
            self.assertEqual(os.read(own, 102), b"z" * 101)

    def test_a_buffer_that_comes_again_is_mapped_already_and_the_least_recent_go(self):
        with Worker() as worker:
            buffers = [memfd(bytes(4096), FIXED) for _ in range(40)]
            places = set()
            for _ in range(3):
                worker.ask("length", None, buffers[0], payload={"bytes": 1, "shared": True})
                once = worker.ask("mapped")["result"]
                (place,) = once["mapped"]
                places.add(place)
            self.assertEqual(len(places), 1, "it was mapped anew")
            for fd in buffers:
                worker.ask("length", None, fd, payload={"bytes": 1, "shared": True})
            often = worker.ask("mapped")["result"]
            self.assertEqual(len(often["mapped"]), 32)
            # Each mapping holds one descriptor, and nothing else does.
            self.assertEqual(often["open"] - once["open"], 31)


class Refused(unittest.TestCase):
    def setUp(self):
        self.opened = []
        self.addCleanup(lambda: [os.close(fd) for fd in self.opened])

    def keep(self, fd):
        self.opened.append(fd)
        return fd

    def hostile(self):
        """Each descriptor that is no payload of a request, with the payload that is said to be."""
        fixed = {"bytes": 4, "shared": True}
        sealed = {"bytes": 4}
        read, write = os.pipe()
        self.opened += [read, write]
        directory = self.keep(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        beside = self.keep(os.open("/tmp", os.O_TMPFILE | os.O_RDWR))
        os.write(beside, b"data")
        path = self.keep(os.open("/proc/self/exe", os.O_PATH))
        memory = self.keep(os.open("/proc/self/mem", os.O_RDWR))
        for name, payload in (("sent", sealed), ("lent", fixed)):
            yield f"pipe {name}", payload, [read]
            yield f"/dev/zero {name}", payload, [self.keep(os.open("/dev/zero", os.O_RDWR))]
            yield f"directory {name}", payload, [directory]
            yield f"file {name}", payload, [beside]
            yield f"path {name}", payload, [path]
            yield f"process memory {name}", payload, [memory]
            yield f"not sealed {name}", payload, [self.keep(memfd(b"data", 0))]
            yield f"may shrink {name}", payload, [self.keep(memfd(b"data", GROW | WRITE | SEAL))]
            yield f"no descriptor {name}", payload, []
            two = self.keep(memfd(b"data", IMMUTABLE))
            yield f"two descriptors {name}", payload, [two, two]
        yield "may be written", sealed, [self.keep(memfd(b"data", FIXED))]
        yield "may be sealed further", sealed, [self.keep(memfd(b"data", SHRINK | GROW | WRITE))]
        yield "lent and not to be written", fixed, [self.keep(memfd(b"data", IMMUTABLE))]
        yield "lent and not to be mapped", fixed, [self.keep(memfd(b"data", FIXED | FUTURE_WRITE))]
        yield "shorter than said", {"bytes": 5}, [self.keep(memfd(b"data", IMMUTABLE))]
        yield "lent and shorter than said", {"bytes": 5, "shared": True}, [self.keep(memfd(b"data", FIXED))]
        yield "of no length", {}, [self.keep(memfd(b"data", IMMUTABLE))]
        yield "of a negative length", {"bytes": -1}, [self.keep(memfd(b"data", IMMUTABLE))]
        yield "not spoken of", None, [self.keep(memfd(b"data", IMMUTABLE))]

    def test_what_is_no_payload_is_refused_and_nothing_is_kept(self):
        with Worker() as worker:
            before = worker.ask("mapped")["result"]
            for name, payload, descriptors in self.hostile():
                fields = {} if payload is None else {"payload": payload}
                answer = worker.ask("length", None, *descriptors, **fields)
                self.assertEqual(answer["kind"], "error", name)
                self.assertEqual(answer["error"]["reason"], "invalid_payload", name)
            self.assertEqual(worker.ask("mapped")["result"], before)


if __name__ == "__main__":
    unittest.main()
