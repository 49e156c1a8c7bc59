"""Plays halsup for the tests of the SDK: the channel of a real worker process, and a control socket, frame by frame.

Nothing here sleeps; whatever is waited for has the same deadline, which a slow emulated machine keeps as well.
"""

import array
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading

DEADLINE_SECONDS = 120
HERE = os.path.dirname(os.path.abspath(__file__))
SDK = os.path.join(HERE, "..", "..", "examples", "sdk")
SHRINK, GROW, WRITE, SEAL, FUTURE_WRITE = 2, 4, 8, 1, 16
FIXED = SHRINK | GROW | SEAL
IMMUTABLE = FIXED | WRITE
F_ADD_SEALS, F_GET_SEALS = 1033, 1034

sys.path.insert(0, SDK)


def memfd(data: bytes, seals: int, name: str = "lent") -> int:
    """A descriptor of memory that is sealed like this."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.pwrite(fd, data, 0)
    fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def received(ancillary) -> list:
    found = array.array("i")
    for _, _, data in ancillary:
        found.frombytes(data)
    return list(found)


class Worker:
    """A worker process, and this end of its channel."""

    def __init__(self, *arguments: str, program: str = os.path.join(HERE, "worker.py"), **environment: str):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = ours
        ours.settimeout(DEADLINE_SECONDS)
        paths = [SDK, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = dict(os.environ, PYTHONPATH=os.pathsep.join(paths), HALSUP_CHANNEL_FD=str(theirs.fileno()), **environment)
        self.process = subprocess.Popen(
            [sys.executable, "-B", program, *arguments],
            pass_fds=[theirs.fileno()],
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self._numbers = iter(range(1, 1 << 30))

    def __enter__(self) -> "Worker":
        hello = self.hear("hello")
        assert hello["protocol"] == 1 and hello["pid"] == self.process.pid, hello
        self.hear("ready")
        self.say(kind="hello", protocol=1)
        return self

    def __exit__(self, *_) -> None:
        self.channel.close()
        self.process.kill()
        self.process.communicate()

    def say(self, *descriptors: int, **frame) -> None:
        self.say_raw(json.dumps(frame).encode(), *descriptors)

    def say_raw(self, message: bytes, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        self.channel.sendmsg([message], rights)

    def hear_with(self) -> tuple:
        """The next frame, and the descriptors that came along."""
        message, ancillary, flags, _ = self.channel.recvmsg(65_537, 256, socket.MSG_CMSG_CLOEXEC)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) and len(message) <= 65_536
        if not message:
            raise EOFError("the worker is gone")
        return json.loads(message), received(ancillary)

    def hear(self, kind: str, **fields) -> dict:
        """The next frame, which is to be of this kind and to have at least these fields."""
        frame, descriptors = self.hear_with()
        assert not descriptors, frame
        said = {name: frame.get(name) for name in ["kind", *fields]}
        assert said == {"kind": kind, **fields}, frame
        return frame

    def begin(self, command: str, args=None, *descriptors: int, **fields) -> str:
        """Sends a request; returns its id."""
        number = f"{next(self._numbers):016x}"
        self.say(*descriptors, kind="request", id=number, command=command, args=args, **fields)
        return number

    def ask(self, command: str, args=None, *descriptors: int, **fields) -> dict:
        """Sends a request; returns the frame that answers it."""
        number = self.begin(command, args, *descriptors, **fields)
        frame, came = self.hear_with()
        assert frame["id"] == number and not came, frame
        return frame

    def is_alive(self) -> None:
        """It answers a ping, and has said nothing before."""
        number = next(self._numbers)
        self.say(kind="ping", id=number)
        self.hear("pong", id=number)

    def ends(self) -> tuple:
        """Its exit status and what it printed, when it has ended by itself."""
        output, _ = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, output.strip()


class Daemon:
    """A control socket on which each call is answered by `answer(call, descriptors, connection)`."""

    def __init__(self, answer) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._directory.name, "control.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._answer = answer
        self._connections = []
        self.errors = []
        self.threads = []
        self.accepted = 0
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self.threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        waiting, descriptors = b"", []
        try:
            while True:
                data, ancillary, _, _ = connection.recvmsg(65_536, 256, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    return
                *calls, waiting = (waiting + data).split(b"\0")
                # The kernel ends a read with the message that descriptors came with, or with a part of it.
                came = received(ancillary)
                for number, call in enumerate(calls, 1):
                    if number == len(calls) and not waiting:
                        descriptors, came = descriptors + came, []
                    try:
                        self._answer(json.loads(call), descriptors, connection)
                    finally:
                        for fd in descriptors:
                            os.close(fd)
                        descriptors = []
                descriptors += came
        except OSError:
            # The client is gone, which may be what the test is about.
            pass
        except Exception as error:  # The test looks whether there was one.
            self.errors.append(error)
        finally:
            connection.close()

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(DEADLINE_SECONDS)
        self._listener.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        # What they had in hand is closed before the next test counts.
        for thread in self.threads:
            thread.join(DEADLINE_SECONDS)
        self._directory.cleanup()


def reply_with(connection: socket.socket, parameters: dict, data: bytes, seals: int = IMMUTABLE, **also) -> None:
    """One reply on a control connection, with memory."""
    fd = memfd(data, seals)
    try:
        reply(connection, parameters, fd, **also)
    finally:
        os.close(fd)


def reply(connection: socket.socket, parameters: dict, *descriptors: int, **also) -> None:
    """One reply on a control connection."""
    message = json.dumps({"parameters": parameters, **also}).encode() + b"\0"
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([message], rights)


class Bridge(Daemon):
    """A control socket whose requests go to a worker, one after the other: both halves of the SDK, and as little between
    them as can be."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.events = []
        self._turn = threading.Lock()
        super().__init__(self._execute)

    def _execute(self, call, descriptors, connection) -> None:
        given = call["parameters"]
        fields = {name: given[name] for name in ("session", "correlation", "payload") if name in given}
        if given.get("stream"):
            fields.update(stream=True, credit=1)
        with self._turn:
            number = self.worker.begin(given["command"], given.get("args"), *descriptors, **fields)
            while self._pass_on(number, connection):
                pass

    def _pass_on(self, number: str, connection: socket.socket) -> bool:
        """Passes one frame on; whether another is to come."""
        frame, came = self.worker.hear_with()
        try:
            if frame["kind"] == "event":
                self.events.append(frame)
                return True
            assert frame["id"] == number, frame
            said = {name: frame[name] for name in ("result", "payload") if name in frame}
            if frame["kind"] == "chunk":
                said.update(chunk=frame.get("data"))
                reply(connection, said, *came, continues=True)
                self.worker.say(kind="credit", id=number, count=1)
            elif frame["kind"] == "error":
                failure = {"outcome": "answered", **frame["error"]}
                reply(connection, failure, error="io.halsup.Control.RequestFailed")
            else:
                reply(connection, said, *came)
            return frame["kind"] == "chunk"
        finally:
            for fd in came:
                os.close(fd)
