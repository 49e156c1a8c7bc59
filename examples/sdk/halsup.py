"""halsup for Python: write workers that requests are dispatched to, and call them. One file, no dependencies; copy it.

A worker:

    from halsup import Context, serve, tool

    @tool
    def add(context: Context, args):
        return args["a"] + args["b"]

    serve()

A caller:

    from halsup import Client

    with Client() as client:
        print(client.call("math", "add", {"a": 1, "b": 2}).result)

A tool is a function of a `Context` and of the request's arguments, which are whatever JSON the caller said. What it returns
is the answer: JSON, or bytes, which travel as memory and are not copied through a socket. A generator is a stream, and goes
no faster than its reader. Functions run in threads, as many at once as the pool's `capacity`; `async` functions run on one
event loop. A request may also have chunks sent to it, which `context.input` gives out. An exception is an answer too. Needs Python 3.9 on Linux.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import inspect
import itertools
import json
import logging
import mmap
import os
import queue
import re
import select
import signal
import socket
import sys
import threading
import time
import traceback as tracebacks
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import (
    Any,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Deque,
    Dict,
    Generic,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
    cast,
    overload,
)

__all__ = [
    "Answer",
    "ApplicationFailed",
    "AsyncClient",
    "AsyncStream",
    "Buffer",
    "CallFailed",
    "Cancelled",
    "Chunk",
    "Client",
    "Context",
    "ControlError",
    "HalsupError",
    "Input",
    "InvalidPayload",
    "Reply",
    "RequestFailed",
    "Stream",
    "Tool",
    "ToolCall",
    "ToolError",
    "ToolServer",
    "Unreachable",
    "Worker",
    "serve",
    "serve_async",
    "tool",
]

PROTOCOL = 1
"""The number that both sides of the channel say in `hello`."""

FRAME_BYTES_MAX = 64 * 1024
"""The longest frame on the channel."""

VALUE_DEPTH_MAX = 14
"""Arrays and objects in arguments and results may be nested this deep."""

JSON_IN_PAYLOAD = {"halsup.payload": "json"}
"""Stands where a value was too long for a frame: the value is in the payload, as JSON. Both sides of this file know it."""

CONTROL_PATH = "/run/halsup/control.sock"
"""Where the daemon listens."""

# How much of a frame is left to a value; the rest is its kind, its numbers and names.
_VALUE_BYTES_MAX = FRAME_BYTES_MAX - 2048
_CALL_BYTES_MAX = 256 * 1024
_MESSAGE_BYTES_MAX = 16 * 1024
_TRACEBACK_BYTES_MAX = 32 * 1024
_REASON_BYTES_MAX = 128
_NAME_BYTES_MAX = 256
# Lent buffers that a worker keeps mapped.
_LENT_BUFFERS_MAX = 32
_LENT_BYTES_MAX = 1 << 30
# How long requests may take to notice that their supervisor is gone.
_ABANDONED_SECONDS = 5.0
_DESCRIPTORS_MAX = 8
# How many chunks of its input wait for a tool to take them.
_INPUT_CHUNKS_MAX = 8
_INTERFACE = "io.halsup.Control."

# linux/fcntl.h; `fcntl` has these names in some builds only.
_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
_SEAL_SEAL = 0x01
_SEAL_SHRINK = 0x02
_SEAL_GROW = 0x04
_SEAL_WRITE = 0x08
_SIZE_FIXED = _SEAL_SHRINK | _SEAL_GROW | _SEAL_SEAL
_IMMUTABLE = _SIZE_FIXED | _SEAL_WRITE
# linux/mman.h; `mmap` has it since Python 3.10.
_MAP_POPULATE = 0x8000

_log = logging.getLogger("halsup")
_request_id = re.compile(r"[0-9a-f]{16}")

Json = Any
"""What `json` reads and writes: None, bool, int, float, str, lists of these, and dicts of these by str."""

Bytes = Union[bytes, bytearray, memoryview]
"""What has bytes to send; anything with the buffer protocol will do, an array of numpy too."""


class HalsupError(Exception):
    """What goes wrong here."""


class InvalidPayload(HalsupError):
    """A descriptor is not memory that may be mapped: no memfd, not sealed as it has to be, or shorter than was said."""


class ToolError(HalsupError):
    """Raised by a tool to fail in a way that its callers expect: an answer, without a traceback.

    `reason` is one word for programs, `category` the kind of error that the application counts it among, `details` any JSON.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Optional[str] = None,
        category: Optional[str] = None,
        details: Json = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.category = category
        self.details = details


class Cancelled(HalsupError):
    """The answer of a request is wanted no more. Clean up and let it pass."""


class CallFailed(HalsupError):
    """A call back to the supervisor has no result. `reason` is one word for programs."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{message} ({reason})")
        self.reason = reason
        self.message = message


class ControlError(HalsupError):
    """The daemon answered with an error of its interface; `name` is that error's, without the interface."""

    def __init__(self, name: str, parameters: Mapping[str, Any]) -> None:
        super().__init__(f"{name}: {parameters.get('message') or dict(parameters)}")
        self.name = name
        self.parameters = parameters


class Unreachable(HalsupError):
    """The daemon could not be asked. Nothing has run."""


class RequestFailed(HalsupError):
    """A request has no result.

    `outcome` says whether it ran: `never_started` (it may be sent again), `in_doubt` (it may have run), or `answered`, for which
    there is `ApplicationFailed`. `reason` is a word such as `pool_saturated`, `queue_timeout`, `worker_timeout` or `worker_exit`.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.outcome: str = str(parameters.get("outcome") or "in_doubt")
        self.category: str = str(parameters.get("category") or "")
        self.reason: str = str(parameters.get("reason") or "")
        self.message: str = str(parameters.get("message") or "")
        self.details: Json = parameters.get("details")
        self.traceback: Optional[str] = parameters.get("traceback")
        self.worker: Optional[str] = parameters.get("worker")
        self.attempts: int = int(parameters.get("attempts") or 0)
        self.request: str = str(parameters.get("request") or "")
        self.correlation: str = str(parameters.get("correlation") or "")
        self.bill: Optional[Mapping[str, Any]] = parameters.get("bill")
        super().__init__(f"{self.reason}: {self.message} ({self.outcome})")


class ApplicationFailed(RequestFailed):
    """The tool itself failed: `category`, `reason`, `details` and `traceback` are what it said."""


# ---------------------------------------------------------------------------------------------------------------- JSON


def _check_value(value: Json, levels: int = VALUE_DEPTH_MAX) -> None:
    """Holds a value to what the other side takes. `json` alone would write keys twice, and numbers that no one reads."""
    kind = type(value)
    if kind is int:
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("a whole number has to fit into 64 bits")
    elif isinstance(value, dict):
        if levels == 0:
            raise ValueError(f"a value is nested deeper than {VALUE_DEPTH_MAX} levels")
        for key, inside in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the keys of an object are strings, not {type(key).__name__}")
            _check_value(inside, levels - 1)
    elif isinstance(value, (list, tuple)):
        if levels == 0:
            raise ValueError(f"a value is nested deeper than {VALUE_DEPTH_MAX} levels")
        for inside in value:
            _check_value(inside, levels - 1)


def _write_json(value: Json) -> bytes:
    """The text of a value; `ValueError` or `TypeError` if it has none that the other side takes."""
    _check_value(value)
    return _dumps(value)


def _dumps(value: Json) -> bytes:
    # A lone surrogate fails to be encoded here, and would be refused as a frame there.
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _cut(text: str, bytes_max: int) -> str:
    """The beginning of a text, without what cannot be written."""
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")


def _cut_front(text: str, bytes_max: int) -> str:
    """The end of a text, where a traceback says most."""
    return text.encode("utf-8", "replace")[-bytes_max:].decode("utf-8", "ignore")


# -------------------------------------------------------------------------------------------------------------- memory


def _bytes_of(value: Any) -> memoryview:
    view = memoryview(value)
    return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())


def _checked(fd: int, length: int, needed: int) -> os.stat_result:
    """Holds a descriptor to what it is said to be, before anyone maps it. Nothing but a file in memory has seals."""
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError as error:
        raise InvalidPayload("the payload's descriptor is no memory that can be sealed") from error
    if seals & needed != needed:
        raise InvalidPayload(f"the payload is sealed by {seals:#x}, not by {needed:#x}")
    status = os.fstat(fd)
    if length > status.st_size:
        raise InvalidPayload(f"the payload has {status.st_size} bytes, not {length}")
    return status


def _map_immutable(fd: int, length: int) -> memoryview:
    """Maps memory that nobody can change any more. It is unmapped when the last view of it is gone."""
    _checked(fd, length, _IMMUTABLE)
    if length == 0:
        return memoryview(b"")
    # Private: a shared mapping of what may not be written is refused before Linux 6.7, be it for reading alone.
    return memoryview(mmap.mmap(fd, length, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))


def _immutable(data: memoryview) -> int:
    """A descriptor of memory with these bytes, which nobody can change any more."""
    fd = os.memfd_create("halsup-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        written = 0
        while written < len(data):
            # Not by `write`: the position goes along with the descriptor, and whoever reads begins at the beginning.
            written += os.pwrite(fd, data[written:], written)
        fcntl.fcntl(fd, _F_ADD_SEALS, _IMMUTABLE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _close_all(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def _descriptors(ancillary: Iterable[Tuple[int, int, bytes]]) -> List[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _rights(descriptors: Sequence[int]) -> List[Tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


class _LentBuffers:
    """Buffers that came with requests, kept mapped: one that comes again needs no mapping and no page faults.

    A mapping holds its descriptor open, so that another memory cannot get the same inode meanwhile. The least recently used
    goes first.
    """

    def __init__(self) -> None:
        self._maps: OrderedDict[Tuple[int, int], mmap.mmap] = OrderedDict()

    def map(self, fd: int, length: int) -> memoryview:
        """All of the buffer, for reading and writing; `OSError` if it is sealed against that."""
        status = _checked(fd, length, _SIZE_FIXED)
        if status.st_size == 0:
            return memoryview(bytearray())
        key = (status.st_dev, status.st_ino)
        known = self._maps.get(key)
        if known is None:
            known = mmap.mmap(fd, status.st_size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            self._maps[key] = known
        self._maps.move_to_end(key)
        while len(self._maps) > _LENT_BUFFERS_MAX or (
            len(self._maps) > 1 and sum(map(len, self._maps.values())) > _LENT_BYTES_MAX
        ):
            # It is unmapped when the last view of it is gone.
            self._maps.popitem(last=False)
        return memoryview(known)

    def __len__(self) -> int:
        return len(self._maps)


# ------------------------------------------------------------------------------------------------------ the worker side


@dataclass(frozen=True)
class Answer:
    """What a tool returns, or a stream yields, where plain JSON or plain bytes do not say enough.

    `result` is JSON, `payload` bytes that go beside it. `in_place` says that so many bytes are already in `Context.lent`.
    """

    result: Json = None
    payload: Optional[Any] = None
    in_place: Optional[int] = None


@dataclass(frozen=True)
class Tool:
    """A function that requests call by name."""

    name: str
    docs: str
    function: Callable[[Context, Json], Any]
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= _NAME_BYTES_MAX:
            raise ValueError(f"the name of a tool has 1 to {_NAME_BYTES_MAX} bytes")
        inside = inspect.unwrap(self.function)
        is_async = inspect.iscoroutinefunction(inside) or inspect.isasyncgenfunction(inside)
        object.__setattr__(self, "is_async", is_async)


class Context:
    """One request, as its tool sees it. It may be used from any thread, until the tool has returned."""

    id: str
    """Names this attempt."""
    command: str
    """The name by which the tool was called."""
    session: Optional[str]
    """The session that the request belongs to."""
    correlation: Optional[str]
    """What ties it to the caller's own records."""
    deadline: Optional[float]
    """When the answer is no longer waited for, by `time.monotonic()`."""
    streaming: bool
    """Whether the caller takes chunks."""
    payload: Optional[memoryview]
    """The bytes that came with the request. Memory that is lent may be written; a view of it is void once there is an answer."""
    lent: Optional[memoryview]
    """All of the memory that the request lent: what is written to it is an answer by `answer_in_place`."""
    input: Optional[Input]
    """The chunks that the caller sends to it, if it sends any."""

    def __init__(self, server: _Server, frame: Mapping[str, Any]) -> None:
        self.id = frame["id"]
        self.command = frame["command"]
        self.session = frame.get("session")
        self.correlation = frame.get("correlation")
        left = frame.get("deadline_ms")
        self.deadline = None if left is None else time.monotonic() + left / 1000
        self.streaming = frame.get("stream") is True
        self.payload = None
        self.lent = None
        self._args: Json = frame.get("args")
        self._server = server
        # Guards what follows, and wakes whoever waits for it.
        self._changed = threading.Condition()
        self._cancelled = False
        self._forgotten = False
        self._credit = int(frame.get("credit") or 0)
        self._task: Optional[asyncio.Task[None]] = None
        self._waiter: Optional[asyncio.Future[None]] = None
        self.input = Input(self) if frame.get("input") is True else None

    @property
    def cancelled(self) -> bool:
        """Whether the answer is wanted no more. Long work looks here now and then; `check` and `wait` raise."""
        return self._cancelled

    @property
    def remaining(self) -> Optional[float]:
        """How many seconds are left; None where there is no deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raises `Cancelled` if the answer is wanted no more."""
        if self._cancelled:
            raise Cancelled("the request is cancelled")

    def wait(self, seconds: float) -> None:
        """Sleeps, but no longer than the answer is wanted: then it raises `Cancelled`."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled, seconds)
        self.check()

    def answer_in_place(self, length: int, result: Json = None) -> Answer:
        """The answer that is in the first `length` bytes of `lent` already, with a result beside it."""
        if self.lent is None or not 0 <= length <= len(self.lent):
            raise ValueError("the answer is not in the memory that the request lent")
        return Answer(result=result, in_place=length)

    def call(self, tool: str, args: Json = None, timeout: Optional[float] = None) -> Json:
        """Has a tool of the supervisor's used, and waits for what comes out.

        Raises `CallFailed` if it has no result, `Cancelled` if the answer of this request is wanted no more meanwhile.
        """
        if self._task is not None:
            raise RuntimeError("an async tool calls back with call_async")
        pending = _Pending(self)
        number = self._server.begin_call(pending, tool, args)
        try:
            with self._changed:
                self._changed.wait_for(lambda: pending.reply is not None or self._cancelled, timeout)
        finally:
            self._server.end_call(number)
        return self._result_of(pending)

    async def call_async(self, tool: str, args: Json = None, timeout: Optional[float] = None) -> Json:
        """The same as `call`, for async tools."""
        loop = asyncio.get_running_loop()
        pending = _Pending(self, loop.create_future())
        number = self._server.begin_call(pending, tool, args)
        try:
            await asyncio.wait_for(cast("asyncio.Future[None]", pending.future), timeout)
        except asyncio.TimeoutError:
            pass
        finally:
            self._server.end_call(number)
        return self._result_of(pending)

    def _result_of(self, pending: _Pending) -> Json:
        reply = pending.reply
        if reply is None:
            self.check()
            raise CallFailed("timeout", "the supervisor did not reply in time")
        error = reply.get("error")
        if isinstance(error, dict):
            raise CallFailed(str(error.get("reason")), str(error.get("message")))
        return reply.get("result")

    def event(
        self,
        name: str,
        measurements: Optional[Mapping[str, Any]] = None,
        metadata: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Tells the supervisor of something that happened: numbers that were measured, and what they are about."""
        self._server.event(name, measurements, metadata)

    def _cancel(self) -> None:
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            task = self._task
        if task is not None:
            self._server.in_loop(task.cancel)

    def _grant(self, count: int) -> None:
        with self._changed:
            self._credit += count
            self._changed.notify_all()
            waiter = self._waiter
        if waiter is not None:
            self._server.in_loop(_settle, waiter)

    def _take_credit(self) -> None:
        """Waits until one more chunk may be sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._credit > 0 or self._cancelled)
            self.check()
            self._credit -= 1

    async def _take_credit_async(self) -> None:
        while True:
            with self._changed:
                self.check()
                if self._credit > 0:
                    self._credit -= 1
                    return
                self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _load_args(self) -> Json:
        """The arguments, which were too long for the frame where they are in the payload."""
        if self.payload is not None and self._args == JSON_IN_PAYLOAD:
            self._args = json.loads(bytes(self.payload))
            self.payload = None
        return self._args

    def _release(self) -> None:
        """Gives up the lent memory: it is the caller's again with the answer."""
        views, self.payload, self.lent = (self.payload, self.lent), None, None
        for view in views:
            if view is not None and not view.readonly:
                try:
                    view.release()
                except BufferError:
                    # The tool kept an array on it. What it sees there from now on is its own affair.
                    pass


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Input:
    """The chunks that a caller sends to a request: take them with `for` in a function, with `async for` in an async one.

    Taking them slowly slows the caller down, and nobody else; what no tool asks for is never sent. Waiting for the next raises
    `Cancelled` when the answer is wanted no more.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        # All of this is guarded by what guards the context.
        self._chunks: Deque[Chunk] = deque()
        self._granted = 0
        self._ended = False
        self._error: Optional[Exception] = None
        self._waiter: Optional[asyncio.Future[None]] = None

    def __iter__(self) -> Input:
        return self

    def __next__(self) -> Chunk:
        if self._context._task is not None:
            raise RuntimeError("an async tool takes its input with `async for`")
        while True:
            chunk, is_over = self._take()
            if chunk is not None:
                return chunk
            if is_over:
                raise StopIteration
            changed = self._context._changed
            with changed:
                changed.wait_for(self._has_news)

    def __aiter__(self) -> Input:
        return self

    async def __anext__(self) -> Chunk:
        while True:
            chunk, is_over = self._take()
            if chunk is not None:
                return chunk
            if is_over:
                raise StopAsyncIteration
            with self._context._changed:
                if self._has_news():
                    continue
                self._waiter = waiter = asyncio.get_running_loop().create_future()
            await waiter

    def _has_news(self) -> bool:
        return bool(self._chunks) or self._ended or self._error is not None or self._context._cancelled

    def _take(self) -> Tuple[Optional[Chunk], bool]:
        """The next chunk if it is here, and whether there is none any more. Asks for more where there is room for some."""
        with self._context._changed:
            self._context.check()
            chunk = self._chunks.popleft() if self._chunks else None
            if chunk is None and self._error is not None:
                raise self._error
            room = _INPUT_CHUNKS_MAX - len(self._chunks) - self._granted
            grants = not self._ended and self._error is None and room >= _INPUT_CHUNKS_MAX // 2
            if grants:
                self._granted += room
            is_over = chunk is None and self._ended
        if grants:
            self._context._server.grant(self._context, room)
        return chunk, is_over

    def _push(self, frame: Mapping[str, Any], descriptors: List[int]) -> None:
        """Takes in what the reader has heard."""
        chunk, error = None, None
        is_last = frame.get("end") is True
        try:
            chunk = self._chunk(frame, descriptors, is_last)
        except (InvalidPayload, OSError, ValueError) as wrong:
            error = wrong
        with self._context._changed:
            if self._granted == 0 or self._ended:
                raise ValueError("a chunk that nobody has asked for")
            self._granted -= 1
            self._ended, self._error = is_last, self._error or error
            if chunk is not None and self._error is None:
                self._chunks.append(chunk)
            self._context._changed.notify_all()
            waiter = self._waiter
        if waiter is not None:
            self._context._server.in_loop(_settle, waiter)

    @staticmethod
    def _chunk(frame: Mapping[str, Any], descriptors: List[int], is_last: bool) -> Optional[Chunk]:
        data, payload = frame.get("data"), frame.get("payload")
        if payload is None:
            # The last may say only that there are no more.
            return None if is_last and "data" not in frame else Chunk(data, None)
        if len(descriptors) != 1 or not isinstance(payload, dict) or type(payload.get("bytes")) is not int:
            raise InvalidPayload(f"a chunk with {len(descriptors)} descriptors, and {payload!r} for a payload")
        memory = _map_immutable(descriptors[0], payload["bytes"])
        return Chunk(_json_in(memory), None) if data == JSON_IN_PAYLOAD else Chunk(data, memory)


class _Pending:
    """A call back to the supervisor that waits for its reply."""

    def __init__(self, context: Context, future: Optional[asyncio.Future[None]] = None) -> None:
        self.context = context
        self.future = future
        self.reply: Optional[Mapping[str, Any]] = None


ToolFunction = TypeVar("ToolFunction", bound=Callable[..., Any])


class Worker:
    """A set of tools, and the serving of them. Most programs have one, behind `tool`, `serve` and `serve_async`."""

    def __init__(self) -> None:
        self.tools: Dict[str, Tool] = {}

    @overload
    def tool(self, function: ToolFunction) -> ToolFunction: ...

    @overload
    def tool(
        self, function: None = None, *, name: Optional[str] = None, docs: Optional[str] = None
    ) -> Callable[[ToolFunction], ToolFunction]: ...

    def tool(
        self, function: Optional[ToolFunction] = None, *, name: Optional[str] = None, docs: Optional[str] = None
    ) -> Any:
        """Makes a function a tool, by its own name and with its docstring unless others are given.

        A generator function is a stream: each `yield` is a chunk, `return` the answer. It goes on when its reader has room;
        when it is cancelled it is closed, so that `finally` and `with` clean up.
        """

        def register(function: ToolFunction) -> ToolFunction:
            made = Tool(name or function.__name__, docs or inspect.getdoc(function) or "", function)
            if made.name in self.tools:
                raise ValueError(f"there are two tools {made.name!r}")
            self.tools[made.name] = made
            return function

        return register if function is None else register(function)

    def serve(self, environment: Mapping[str, str] = os.environ) -> None:
        """Says that the worker is ready, and serves requests until it is drained, asked to end (SIGTERM), or left alone.

        Requests in flight are finished first. Whatever has to be warm is made so before this.
        """
        server = _Server(self.tools, environment)
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGTERM, lambda *_: server.on_signal()) if in_main else None
        try:
            server.open(None)
            server.read()
            server.finish()
        finally:
            server.close()
            if in_main:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    async def serve_async(self, environment: Mapping[str, str] = os.environ) -> None:
        """The same on the event loop that runs: async tools run on it, others in threads of their own."""
        loop = asyncio.get_running_loop()
        server = _Server(self.tools, environment)
        ended: asyncio.Future[None] = loop.create_future()

        def read() -> None:
            try:
                server.read()
                server.finish()
            finally:
                loop.call_soon_threadsafe(_settle, ended)

        in_main = threading.current_thread() is threading.main_thread()
        if in_main:
            loop.add_signal_handler(signal.SIGTERM, server.on_signal)
        try:
            server.open(loop)
            threading.Thread(target=read, name="halsup-reader", daemon=True).start()
            await ended
        except asyncio.CancelledError:
            server.abandon()
            await ended
            raise
        finally:
            server.close()
            if in_main:
                loop.remove_signal_handler(signal.SIGTERM)


class _Server:
    """A worker at work: one reader, a thread for each request that may be in flight, and a loop for what is async.

    The reader only reads: it answers pings, hands out requests and passes on credits and cancellations, so that a worker
    whose tools are all busy, or stuck, is still seen to be alive. Sending needs no lock: a message is sent whole.
    """

    def __init__(self, tools: Mapping[str, Tool], environment: Mapping[str, str]) -> None:
        number = environment.get("HALSUP_CHANNEL_FD")
        if number is None:
            raise HalsupError("HALSUP_CHANNEL_FD is not set: the pool has to have `dispatch`, or ready = \"channel\"")
        self._tools = tools
        self._capacity = max(1, int(environment.get("HALSUP_CAPACITY") or 1))
        threshold = int(environment.get("HALSUP_ZERO_COPY_BYTES") or _VALUE_BYTES_MAX)
        self._value_bytes_max = min(max(0, threshold), _VALUE_BYTES_MAX)
        self._channel = socket.socket(fileno=int(number))
        # Programs that this one starts do not get it.
        self._channel.set_inheritable(False)
        self._channel.setblocking(True)
        self._lock = threading.Condition()
        self._in_flight: Dict[str, Context] = {}
        self._pending: Dict[int, _Pending] = {}
        self._calls = itertools.count(1)
        self._work: queue.SimpleQueue[Optional[Tuple[Tool, Context]]] = queue.SimpleQueue()
        self._lent = _LentBuffers()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._own_loop: Optional[asyncio.AbstractEventLoop] = None
        self._draining = False
        self._forgetting = False
        self._closing = False
        self.junk = 0

    def open(self, loop: Optional[asyncio.AbstractEventLoop]) -> None:
        """Makes the threads, then says hello and ready."""
        if loop is None and any(tool.is_async for tool in self._tools.values()):
            loop = self._own_loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="halsup-loop", daemon=True).start()
        self._loop = loop
        if any(not tool.is_async for tool in self._tools.values()):
            for number in range(self._capacity):
                threading.Thread(target=self._run_all, name=f"halsup-{number}", daemon=True).start()
        self._say({"kind": "hello", "protocol": PROTOCOL, "pid": os.getpid()})
        self._say({"kind": "ready"})

    def read(self) -> None:
        """Reads the channel to its end."""
        space = socket.CMSG_SPACE(_DESCRIPTORS_MAX * array.array("i").itemsize)
        while True:
            try:
                message, ancillary, flags, _ = self._channel.recvmsg(FRAME_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                return
            descriptors = _descriptors(ancillary)
            if not message:
                _close_all(descriptors)
                return
            if flags & socket.MSG_CTRUNC:
                # More than anybody sends, or no room for it here: what is missing is said where it is missed.
                _close_all(descriptors)
                descriptors = []
            if flags & socket.MSG_TRUNC:
                _close_all(descriptors)
                self._pass_over("a message was cut")
                continue
            try:
                self._hear(message, descriptors)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                self._pass_over(repr(error))
            finally:
                _close_all(descriptors)

    def finish(self) -> None:
        """Waits for the requests in flight: for their answers, or, where nobody is left to get them, for their end."""
        with self._lock:
            if self._closing:
                self._lock.wait_for(lambda: not self._in_flight)
                return
            left = list(self._in_flight.values())
        for context in left:
            context._forgotten = True
            context._cancel()
        with self._lock:
            if not self._lock.wait_for(lambda: not self._in_flight, _ABANDONED_SECONDS):
                _log.warning("%d requests did not end when the supervisor was gone", len(self._in_flight))

    def close(self) -> None:
        """Ends the threads that are idle, and the loop that is not somebody else's."""
        for _ in range(self._capacity):
            self._work.put(None)
        if self._own_loop is not None:
            self._own_loop.call_soon_threadsafe(self._own_loop.stop)
        self._channel.close()

    def on_signal(self) -> None:
        """Asked to end: as if drained. A second signal ends at once. Takes no lock: it may interrupt whoever holds it."""
        if threading.current_thread() is threading.main_thread() and self._own_loop is self._loop:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._draining = True
        self._end_if_drained()

    def abandon(self) -> None:
        """Stops reading; `finish` then cancels what is in flight."""
        self._shut()

    def in_loop(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Has the event loop do something."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(function, *arguments)
            except RuntimeError:
                # Closed: nothing runs on it that could be told.
                pass

    def event(
        self, name: str, measurements: Optional[Mapping[str, Any]], metadata: Optional[Mapping[str, Any]]
    ) -> None:
        frame: Dict[str, Any] = {"kind": "event", "event": _name("an event", name)}
        if measurements is not None:
            frame["measurements"] = dict(measurements)
        if metadata is not None:
            frame["metadata"] = dict(metadata)
        self._say(frame)

    def grant(self, context: Context, count: int) -> None:
        """Has so many more chunks of a request's input sent."""
        self._say({"kind": "credit", "id": context.id, "count": count})

    def begin_call(self, pending: _Pending, tool: str, args: Json) -> int:
        pending.context.check()
        number = next(self._calls)
        frame = {"kind": "call", "call": number, "id": pending.context.id, "tool": _name("a tool", tool)}
        if args is not None:
            frame["args"] = args
        self._pending[number] = pending
        try:
            self._say(frame)
        except BaseException:
            self.end_call(number)
            raise
        return number

    def end_call(self, number: int) -> None:
        self._pending.pop(number, None)

    # What the reader does.

    def _pass_over(self, why: str) -> None:
        self.junk += 1
        _log.debug("passed over a frame: %s", why)

    def _hear(self, message: bytes, descriptors: List[int]) -> None:
        frame = json.loads(message)
        kind = frame["kind"]
        if kind == "request":
            self._on_request(frame, descriptors)
        elif kind == "ping":
            self._say({"kind": "pong", "id": frame["id"]})
        elif kind == "credit":
            self._on_credit(frame)
        elif kind == "chunk":
            context = self._in_flight.get(frame["id"])
            # Of a request that is over, some may be on their way.
            if context is not None and context.input is not None:
                context.input._push(frame, descriptors)
        elif kind == "cancel":
            context = self._in_flight.get(frame["id"])
            if context is not None:
                context._cancel()
        elif kind == "reply":
            self._on_reply(frame)
        elif kind == "drain":
            self._draining = True
            self._end_if_drained()
        elif kind == "forget":
            self._on_forget()
        elif kind == "hello":
            if frame["protocol"] != PROTOCOL:
                _log.error("the supervisor speaks protocol %s, not %s", frame["protocol"], PROTOCOL)
                self._shut()
        else:
            # For later versions.
            self._pass_over(f"kind {kind!r}")

    def _on_request(self, frame: Mapping[str, Any], descriptors: List[int]) -> None:
        if not (_request_id.fullmatch(frame["id"]) and isinstance(frame["command"], str)):
            raise ValueError("a request without an id or a command")
        context = Context(self, frame)
        with self._lock:
            if context.id in self._in_flight:
                raise ValueError("a request that is in flight already")
            self._in_flight[context.id] = context
        try:
            self._take_payload(context, frame.get("payload"), descriptors)
        except (InvalidPayload, OSError, ValueError) as error:
            self._fail(context, str(error), reason="invalid_payload", category="validation")
            return self._over(context)
        tool = self._tools.get(context.command)
        if tool is None:
            self._fail(context, f"there is no tool {context.command!r}", reason="unknown_command", category="validation")
            self._over(context)
        elif tool.is_async:
            self.in_loop(self._begin_task, tool, context)
        else:
            self._work.put((tool, context))

    def _take_payload(self, context: Context, payload: Any, descriptors: List[int]) -> None:
        if payload is None and not descriptors:
            return
        if not isinstance(payload, dict) or len(descriptors) != 1:
            raise InvalidPayload(f"a request with {len(descriptors)} descriptors, and {payload!r} for a payload")
        length = payload.get("bytes")
        if type(length) is not int or length < 0:
            raise InvalidPayload("a payload without its length")
        if payload.get("shared") is True:
            context.lent = self._lent.map(descriptors[0], length)
            context.payload = context.lent[:length]
        else:
            context.payload = _map_immutable(descriptors[0], length)

    def _on_credit(self, frame: Mapping[str, Any]) -> None:
        count = frame["count"]
        if type(count) is not int or count < 1:
            raise ValueError("a credit of nothing")
        context = self._in_flight.get(frame["id"])
        if context is not None:
            context._grant(count)

    def _on_reply(self, frame: Mapping[str, Any]) -> None:
        pending = self._pending.pop(frame["call"], None)
        if pending is None:
            return self._pass_over("a reply to no call")
        context = pending.context
        with context._changed:
            pending.reply = frame
            context._changed.notify_all()
        if pending.future is not None:
            self.in_loop(_settle, pending.future)

    def _on_forget(self) -> None:
        with self._lock:
            left = list(self._in_flight.values())
            for context in left:
                context._forgotten = True
            self._forgetting = True
        for context in left:
            context._cancel()
        self._ready_if_forgotten()

    def _ready_if_forgotten(self) -> None:
        """Says ready, once, when what was to be forgotten is over."""
        with self._lock:
            if not self._forgetting or any(context._forgotten for context in self._in_flight.values()):
                return
            self._forgetting = False
        self._say({"kind": "ready"})

    # What the threads and the loop do.

    def _run_all(self) -> None:
        while True:
            work = self._work.get()
            if work is None:
                return
            self._run(*work)
            # Nothing of a request outlives it here until the next one comes.
            del work

    def _run(self, tool: Tool, context: Context) -> None:
        try:
            context.check()
            value = tool.function(context, context._load_args())
            if inspect.isgenerator(value):
                value = self._stream(context, value)
            context.check()
            self._answer(context, value)
        except BaseException as error:
            self._fail_with(context, error)
        finally:
            self._over(context)

    def _stream(self, context: Context, items: Iterator[Any]) -> Any:
        """Sends what a generator yields, and returns what it returns; where no chunks are taken, a list of what it yields."""
        collected: List[Any] = []
        try:
            while True:
                try:
                    item = next(items)
                except StopIteration as end:
                    return end.value if context.streaming else collected
                if context.streaming:
                    context._take_credit()
                    self._chunk(context, item)
                else:
                    context.check()
                    collected.append(item)
        finally:
            getattr(items, "close", lambda: None)()

    def _begin_task(self, tool: Tool, context: Context) -> None:
        task = asyncio.get_running_loop().create_task(self._run_async(tool, context))
        with context._changed:
            context._task = task
            cancelled = context._cancelled
        if cancelled:
            # Before the task has begun it would end without a word.
            asyncio.get_running_loop().call_soon(task.cancel)

    async def _run_async(self, tool: Tool, context: Context) -> None:
        try:
            context.check()
            made = tool.function(context, context._load_args())
            value = await self._stream_async(context, made) if inspect.isasyncgen(made) else await made
            context.check()
            self._answer(context, value)
        except BaseException as error:
            self._fail_with(context, error)
        finally:
            self._over(context)

    async def _stream_async(self, context: Context, items: Any) -> Any:
        collected: List[Any] = []
        try:
            async for item in items:
                if context.streaming:
                    await context._take_credit_async()
                    self._chunk(context, item)
                else:
                    collected.append(item)
        finally:
            await items.aclose()
        return None if context.streaming else collected

    def _over(self, context: Context) -> None:
        context._release()
        with self._lock:
            self._in_flight.pop(context.id, None)
            if not self._in_flight:
                self._lock.notify_all()
        self._ready_if_forgotten()
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not self._in_flight:
            self._closing = True
            self._shut()

    def _shut(self) -> None:
        """Has the reader come to its end, after what has arrived."""
        try:
            self._channel.shutdown(socket.SHUT_RD)
        except OSError:
            pass

    # What is sent.

    def _say(self, frame: Mapping[str, Any]) -> None:
        _check_value(frame, VALUE_DEPTH_MAX + 1)
        message = _dumps(frame)
        if len(message) > FRAME_BYTES_MAX:
            raise ValueError(f"a frame {frame['kind']!r} is longer than {FRAME_BYTES_MAX} bytes")
        self._send(message)

    def _send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        try:
            self._channel.sendmsg([message], _rights(descriptors))
        except OSError as error:
            # The reader sees it too, and ends.
            _log.debug("the supervisor is gone: %s", error)

    def _answer(self, context: Context, value: Any) -> None:
        answer = value if isinstance(value, Answer) else _as_answer(value)
        if answer.in_place is not None:
            context.answer_in_place(answer.in_place)
            payload = b'{"bytes":%d,"in_request":true}' % answer.in_place
            self._send_value(context, b"result", answer.result, payload)
        elif answer.payload is None:
            self._send_value(context, b"result", answer.result, None)
        else:
            self._send_bytes(context, b"result", answer.result, _bytes_of(answer.payload))

    def _chunk(self, context: Context, value: Any) -> None:
        chunk = value if isinstance(value, Answer) else _as_answer(value)
        if chunk.in_place is not None:
            raise ValueError("a chunk cannot be in the memory that the request lent")
        if chunk.payload is None:
            self._send_value(context, b"chunk", chunk.result, None)
        else:
            self._send_bytes(context, b"chunk", chunk.result, _bytes_of(chunk.payload))

    def _send_bytes(self, context: Context, kind: bytes, value: Json, data: memoryview) -> None:
        """Sends bytes: in the memory that was lent if they fit there, else in memory of their own."""
        if kind == b"result" and context.lent is not None and len(data) <= len(context.lent):
            context.lent[: len(data)] = data
            return self._send_value(context, kind, value, b'{"bytes":%d,"in_request":true}' % len(data))
        fd = _immutable(data)
        try:
            self._send_value(context, kind, value, b'{"bytes":%d}' % len(data), (fd,))
        finally:
            os.close(fd)

    def _send_value(
        self, context: Context, kind: bytes, value: Json, payload: Optional[bytes], descriptors: Sequence[int] = ()
    ) -> None:
        """Sends JSON, as a payload if it is too long."""
        text = b"" if value is None else _write_json(value)
        if payload is None and len(text) > self._value_bytes_max:
            return self._send_bytes(context, kind, JSON_IN_PAYLOAD, memoryview(text))
        if len(text) > _VALUE_BYTES_MAX:
            raise ValueError(f"a value of {len(text)} bytes beside a payload: {_VALUE_BYTES_MAX} are the most")
        pieces = [b'{"kind":"', kind, b'","id":"', context.id.encode(), b'"']
        if text:
            pieces += [b',"result":' if kind == b"result" else b',"data":', text]
        if payload is not None:
            pieces += [b',"payload":', payload]
        pieces.append(b"}")
        if kind == b"result":
            context._release()
        if not context._forgotten:
            self._send(b"".join(pieces), descriptors)

    def _fail_with(self, context: Context, error: BaseException) -> None:
        if context._cancelled and isinstance(error, (Cancelled, asyncio.CancelledError, GeneratorExit)):
            self._fail(context, "the request was cancelled", reason="cancelled", category="cancelled")
        elif isinstance(error, ToolError):
            self._fail(context, error.message, error.reason, error.category, error.details)
        else:
            name = type(error).__name__
            text = "".join(tracebacks.format_exception(type(error), error, error.__traceback__))
            self._fail(context, str(error) or name, name, "python_error", traceback=text)

    def _fail(
        self,
        context: Context,
        message: str,
        reason: Optional[str] = None,
        category: Optional[str] = None,
        details: Json = None,
        traceback: Optional[str] = None,
    ) -> None:
        """Answers with an error, shortened until it can be sent."""
        context._release()
        if context._forgotten:
            return
        error: Dict[str, Any] = {"message": _cut(message, _MESSAGE_BYTES_MAX)}
        if reason is not None:
            error["reason"] = _cut(reason, _REASON_BYTES_MAX)
        if category is not None:
            error["category"] = _cut(category, _REASON_BYTES_MAX)
        full = dict(error)
        if details is not None:
            full["details"] = details
        if traceback is not None:
            full["traceback"] = _cut_front(traceback, _TRACEBACK_BYTES_MAX)
        without = {key: value for key, value in full.items() if key != "details"}
        short = dict(error, message=_cut(message, 1024))
        for said in (full, without, error, short):
            try:
                _check_value(said.get("details"))
                text = _dumps({"kind": "error", "id": context.id, "error": said})
            except (ValueError, TypeError):
                continue
            if len(text) <= FRAME_BYTES_MAX:
                return self._send(text)


def _as_answer(value: Any) -> Answer:
    return Answer(payload=value) if isinstance(value, (bytes, bytearray, memoryview)) else Answer(result=value)


def _name(of: str, name: str) -> str:
    if not 1 <= len(name.encode()) <= _NAME_BYTES_MAX:
        raise ValueError(f"the name of {of} has 1 to {_NAME_BYTES_MAX} bytes")
    return name


_worker = Worker()
tool = _worker.tool
serve = _worker.serve
serve_async = _worker.serve_async


# ------------------------------------------------------------------------------------------------------ the caller side


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    `payload` are the bytes that came with it. Where a `Buffer` was lent and the answer is in it, they are a view of that buffer,
    void when it is given back. Times are in seconds.
    """

    result: Json
    payload: Optional[memoryview]
    request: str
    worker: str
    generation: int
    attempts: int
    queued: float
    duration: float
    correlation: str
    bill: Optional[Mapping[str, Any]] = None
    """What the request has used, if that was asked for: see docs/dispatch.md."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a stream: JSON, bytes, or both."""

    data: Json
    payload: Optional[memoryview]


@dataclass(frozen=True)
class ToolCall:
    """A call of a worker, as its function sees it. A reply is waited for until `time.monotonic()` is `deadline`."""

    call: str
    tool: str
    args: Json
    request: str
    worker: str
    session: Optional[str]
    correlation: str
    deadline: Optional[float]


class Buffer:
    """Memory that is lent with a request and may come back with the answer in it: neither way is it copied.

    Made by `Client.buffer`; write to `view`, pass it as `payload`, read the reply's payload, all inside `with`. It is used again
    afterwards, already mapped and faulted in at both ends, unless somebody may still hold it: a worker whose answer is in
    doubt, or an array on this side.
    """

    def __init__(self, pool: _Buffers, size: int) -> None:
        self.fd = os.memfd_create("halsup-lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self.in_doubt = False
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SIZE_FIXED)
            self._map = mmap.mmap(
                self.fd, size, flags=mmap.MAP_SHARED | _MAP_POPULATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        except BaseException:
            os.close(self.fd)
            raise
        self._pool = pool
        self._views: List[memoryview] = []
        self.length = 0

    def __len__(self) -> int:
        return len(self._map)

    @property
    def view(self) -> memoryview:
        """All of it."""
        return self.first(len(self))

    def first(self, length: int) -> memoryview:
        """The first `length` bytes of it."""
        whole = memoryview(self._map)
        part = whole[:length]
        self._views += [part, whole]
        return part

    def fill(self, data: Any) -> None:
        """Copies `data` to its beginning, and lets no more than that be read."""
        source = _bytes_of(data)
        with memoryview(self._map) as whole, whole[: len(source)] as part:
            part[:] = source
        self.length = len(source)

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.give_back(self)

    def settle(self) -> bool:
        """Makes its views void; whether nobody else can still have one."""
        views, self._views = self._views, []
        try:
            for view in views:
                view.release()
        except BufferError:
            return False
        # Each view that is still there, of whatever part, holds a reference to the mapping: here are the only two.
        return sys.getrefcount(self._map) <= 2

    def close(self) -> None:
        os.close(self.fd)
        # It is unmapped when the last view of it is gone.
        del self._map


class _Buffers:
    """Buffers that are not lent now, by size; the one that came back last is the warmest."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._free: Dict[int, List[Buffer]] = {}
        self._free_bytes = 0
        self._lock = threading.Lock()
        self._closed = False

    def take(self, size: int) -> Buffer:
        """A buffer of at least this size: a power of two, so that it fits the next as well."""
        rounded = 1 << max(16, (size - 1).bit_length())
        with self._lock:
            free = self._free.get(rounded)
            if free:
                self._free_bytes -= rounded
                return free.pop()
        return Buffer(self, rounded)

    def give_back(self, buffer: Buffer) -> None:
        """Takes a buffer back; closes it if it must not be used again, or there are enough."""
        size = len(buffer)
        if buffer.settle() and not buffer.in_doubt:
            with self._lock:
                if not self._closed and self._free_bytes + size <= self._bytes_max:
                    buffer.length = 0
                    self._free.setdefault(size, []).append(buffer)
                    self._free_bytes += size
                    return
        buffer.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            free, self._free, self._free_bytes = self._free, {}, 0
        for buffer in itertools.chain.from_iterable(free.values()):
            buffer.close()


class _Replies:
    """Takes what a control connection brings apart: replies, each with the descriptor that came with it."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._descriptors: Deque[int] = deque()

    def push(self, data: bytes, ancillary: Iterable[Tuple[int, int, bytes]]) -> None:
        self._bytes += data
        self._descriptors.extend(_descriptors(ancillary))

    def next(self) -> Optional[Dict[str, Any]]:
        """The next reply, if all of it is here."""
        end = self._bytes.find(0)
        if end < 0:
            return None
        reply = json.loads(bytes(self._bytes[:end]))
        del self._bytes[: end + 1]
        if not isinstance(reply, dict):
            raise HalsupError("the daemon's reply is not an object")
        return reply

    def descriptor(self) -> int:
        """The descriptor of the reply that speaks of one; the caller closes it."""
        if not self._descriptors:
            raise HalsupError("the daemon spoke of a payload and sent no descriptor")
        return self._descriptors.popleft()

    def is_empty(self) -> bool:
        """Whether nothing waits that belongs to a reply."""
        return not self._bytes and not self._descriptors

    def close(self) -> None:
        _close_all(self._descriptors)
        self._descriptors.clear()


_RECEIVE_BYTES = 64 * 1024
_ANCILLARY_BYTES = socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4)
# How much longer than the request's own timeouts a client waits before it takes the daemon for gone.
_MARGIN_SECONDS = 10.0


class _Execution:
    """One request without its connection: what is sent, and what is made of what comes. Both clients have it."""

    def __init__(self, buffers: _Buffers, parameters: Dict[str, Any], payload: Any, answer_bytes: int) -> None:
        self._own: Optional[Buffer] = None
        self.buffer: Optional[Buffer] = None
        # When the daemon is taken for gone: it answers in time whatever becomes of the worker.
        self.until: Optional[float] = None
        if parameters.get("timeout_ms") is not None:
            limits = int(parameters["timeout_ms"]) + int(parameters.get("queue_timeout_ms") or 0)
            self.until = time.monotonic() + limits / 1000 + _MARGIN_SECONDS
        parameters = {key: value for key, value in parameters.items() if value is not None}
        args = parameters.get("args")
        text = b"" if args is None else _write_json(args)
        if payload is None and len(text) > _VALUE_BYTES_MAX:
            # Arguments that no frame of the channel can hold.
            payload, parameters["args"] = memoryview(text), JSON_IN_PAYLOAD
        if isinstance(payload, Buffer):
            self.buffer = payload
        elif payload is not None or answer_bytes:
            data = memoryview(b"") if payload is None else _bytes_of(payload)
            self.buffer = self._own = buffers.take(max(len(data), answer_bytes, 1))
            self.buffer.fill(data)
        if self.buffer is not None:
            parameters["payload"] = {"bytes": self.buffer.length, "shared": True}
        self.descriptors = [] if self.buffer is None else [self.buffer.fd]
        try:
            self.message = _call("Execute", parameters, more=parameters.get("stream") is True)
        except BaseException:
            self.close()
            raise

    def chunk(self, parameters: Mapping[str, Any], replies: _Replies) -> Chunk:
        data, payload = parameters.get("chunk"), self._payload(parameters, replies)
        return Chunk(_json_in(payload), None) if data == JSON_IN_PAYLOAD and payload is not None else Chunk(data, payload)

    def reply(self, parameters: Mapping[str, Any], replies: _Replies) -> Reply:
        result, payload = parameters.get("result"), self._payload(parameters, replies)
        if payload is not None and result == JSON_IN_PAYLOAD:
            result, payload = _json_in(payload), None
        return Reply(
            result=result,
            payload=payload,
            request=str(parameters.get("request") or ""),
            worker=str(parameters.get("worker") or ""),
            generation=int(parameters.get("generation") or 0),
            attempts=int(parameters.get("attempts") or 0),
            queued=int(parameters.get("queued_usec") or 0) / 1e6,
            duration=int(parameters.get("usec") or 0) / 1e6,
            correlation=str(parameters.get("correlation") or ""),
            bill=parameters.get("bill"),
        )

    def _payload(self, parameters: Mapping[str, Any], replies: _Replies) -> Optional[memoryview]:
        payload = parameters.get("payload")
        if payload is None:
            return None
        length = payload["bytes"]
        if payload.get("in_request") is True:
            if self.buffer is None or not 0 <= length <= len(self.buffer):
                raise InvalidPayload("the answer is said to be in memory that was not lent")
            view = self.buffer.first(length)
            # The buffer goes back when the reply is there; what is in it stays.
            return view if self._own is None else memoryview(bytes(view))
        fd = replies.descriptor()
        try:
            return _map_immutable(fd, length)
        finally:
            os.close(fd)

    def close(self, error: Optional[BaseException] = None) -> None:
        """Gives the buffer back, which is used no more if a worker may still write to it."""
        certain = error is None or isinstance(error, (Unreachable, ControlError))
        if isinstance(error, RequestFailed):
            certain = error.outcome != "in_doubt"
        if self.buffer is not None and not certain:
            self.buffer.in_doubt = True
        self.buffer = None
        if self._own is not None:
            own, self._own = self._own, None
            own.__exit__()

    def __enter__(self) -> _Execution:
        return self

    def __exit__(self, _: object, error: Optional[BaseException], __: object) -> None:
        self.close(error)


def _json_in(payload: memoryview) -> Json:
    return json.loads(bytes(payload))


def _call(method: str, parameters: Mapping[str, Any], more: bool = False, oneway: bool = False) -> bytes:
    _check_value(parameters, VALUE_DEPTH_MAX + 1)
    call: Dict[str, Any] = {"method": method if "." in method else _INTERFACE + method, "parameters": parameters}
    if more:
        call["more"] = True
    if oneway:
        call["oneway"] = True
    message = _dumps(call) + b"\0"
    if len(message) > _CALL_BYTES_MAX:
        raise ValueError(f"a call of {len(message)} bytes: {_CALL_BYTES_MAX} are the most, beside a payload")
    return message


def _parameters_of(reply: Mapping[str, Any]) -> Dict[str, Any]:
    """What a reply says; raises what it refuses."""
    parameters = reply.get("parameters") or {}
    error = reply.get("error")
    if error is None:
        return cast("Dict[str, Any]", parameters)
    name = str(error)
    if name == _INTERFACE + "RequestFailed":
        raise (ApplicationFailed if parameters.get("outcome") == "answered" else RequestFailed)(parameters)
    raise ControlError(name[len(_INTERFACE) :] if name.startswith(_INTERFACE) else name, parameters)


def _in_doubt(reason: str, message: str) -> RequestFailed:
    return RequestFailed({"outcome": "in_doubt", "category": "client", "reason": reason, "message": message})


def _lost() -> RequestFailed:
    return _in_doubt("connection_lost", "the daemon closed the connection before it answered")


def _wait(pool: Optional[str], complete: bool) -> Dict[str, Any]:
    return {**({} if pool is None else {"pool": pool}), **({"complete": True} if complete else {})}


def _check_there(said: Mapping[str, Any]) -> None:
    if said.get("reached") is not True:
        reasons = [f"{one['worker']}: {one['reason']}" for one in said.get("failures") or []]
        raise HalsupError("; ".join(["nothing that is waited for is on its way", *reasons]))


def _late(error: RequestFailed) -> Exception:
    return TimeoutError("what is waited for was not there in time") if error.reason == "client_timeout" else error


def _milliseconds(seconds: Optional[float]) -> Optional[int]:
    return None if seconds is None else max(0, round(seconds * 1000))


def _execute(
    pool: str,
    command: str,
    args: Json,
    session: Optional[str],
    affinity: Optional[str],
    timeout: Optional[float],
    queue_timeout: Optional[float],
    idempotent: bool,
    correlation: Optional[str],
    stream: bool,
    bill: bool,
    has_input: bool,
) -> Dict[str, Any]:
    return {
        "pool": pool,
        "command": command,
        "args": args,
        "session": session,
        "affinity": affinity,
        "timeout_ms": _milliseconds(timeout),
        "queue_timeout_ms": _milliseconds(queue_timeout),
        "idempotent": idempotent or None,
        "correlation": correlation,
        "stream": stream or None,
        "bill": bill or None,
        "input": has_input or None,
    }


def _input_chunk(value: Any) -> Tuple[bytes, List[int]]:
    """The message that sends a chunk, and the descriptors that go with it, which the caller closes."""
    chunk = value if isinstance(value, Answer) else _as_answer(value)
    if chunk.in_place is not None:
        raise ValueError("a chunk is in no memory that was lent")
    said, payload = chunk.result, chunk.payload
    text = b"" if said is None else _write_json(said)
    if payload is None and len(text) > _VALUE_BYTES_MAX:
        said, payload = JSON_IN_PAYLOAD, text
    parameters: Dict[str, Any] = {} if said is None else {"chunk": said}
    if payload is None:
        return _call("SendChunk", parameters, oneway=True), []
    data = _bytes_of(payload)
    parameters["payload"] = {"bytes": len(data)}
    message = _call("SendChunk", parameters, oneway=True)
    return message, [_immutable(data)]


_INPUT_END = b'{"method":"io.halsup.Control.SendChunk","parameters":{"end":true},"oneway":true}\0'


def _open_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


class _Line:
    """What the connections of both clients have in common: a call goes out, replies come in until it is at rest."""

    def __init__(self) -> None:
        self._socket = _open_socket()
        self.replies = _Replies()
        self._at_rest = True
        # Whether a message has gone out in part.
        self.is_cut = False

    def is_idle(self) -> bool:
        """Whether the last call is over, with all that belongs to it."""
        return self._at_rest and not self.is_cut and self.replies.is_empty()

    def _take(self) -> Optional[Dict[str, Any]]:
        reply = self.replies.next()
        if reply is not None and reply.get("continues") is not True:
            self._at_rest = True
        return reply

    def _push(self, received: Tuple[bytes, Any, int, Any]) -> None:
        data, ancillary, _, _ = received
        self.replies.push(data, ancillary)
        if not data:
            raise _lost()

    def say_no_more(self) -> None:
        """Tells the daemon that nothing more comes; what it still says is heard."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def hang_up(self) -> None:
        """Ends it for whoever else uses it too."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self._socket.close()
        self.replies.close()


class _Connection(_Line):
    """A control connection that a thread waits for."""

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise Unreachable(f"connect to {path}: {error}") from error

    def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends a call; `Unreachable` if nothing of it has gone."""
        self._at_rest = False
        self._socket.settimeout(None)
        try:
            sent = self._socket.sendmsg([message], _rights(descriptors))
        except OSError as error:
            raise Unreachable(f"send a call: {error}") from error
        try:
            self._socket.sendall(memoryview(message)[sent:])
        except OSError as error:
            raise _lost() from error

    def send_beside(self, out: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
        """Sends on `out`, a duplicate of its socket, while another thread receives and has its timeouts."""
        rest = memoryview(message)
        room = select.poll()
        room.register(out, select.POLLOUT)
        while rest:
            try:
                sent = out.sendmsg([rest], _rights(descriptors), socket.MSG_DONTWAIT)
            except BlockingIOError:
                room.poll()
                continue
            rest, descriptors = rest[sent:], ()
            self.is_cut = bool(rest)

    def duplicate(self) -> socket.socket:
        return self._socket.dup()

    def receive(self, until: Optional[float] = None) -> Dict[str, Any]:
        """The next reply, before `time.monotonic()` is `until`."""
        while True:
            reply = self._take()
            if reply is not None:
                return reply
            try:
                self._socket.settimeout(None if until is None else max(0.001, until - time.monotonic()))
                received = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            except socket.timeout as error:
                raise _in_doubt("client_timeout", "the daemon did not answer in time") from error
            except OSError as error:
                raise _lost() from error
            self._push(received)


class _Sender:
    """Sends the input of a request from a thread of its own, as fast as it is taken, until its answer is there."""

    def __init__(self, connection: _Connection, items: Iterable[Any]) -> None:
        self.error: Optional[BaseException] = None
        self._connection = connection
        self._out = connection.duplicate()
        self._items = items
        self._stopped = False
        # Held while something is sent: who stops it does so between two messages, or not at all.
        self._sending = threading.Lock()
        threading.Thread(target=self._run, name="halsup-input", daemon=True).start()

    def _run(self) -> None:
        try:
            for item in self._items:
                message, descriptors = _input_chunk(item)
                try:
                    if not self._send(message, descriptors):
                        return
                finally:
                    _close_all(descriptors)
            self._send(_INPUT_END, ())
        except OSError as error:
            # The daemon is gone, or the answer is wanted no more: whoever waits for that sees it too.
            _log.debug("send a request's input: %s", error)
        except BaseException as error:
            # Without its end the input is none: the request is given up.
            self.error = error
            self._connection.hang_up()
        finally:
            with self._sending:
                self._stopped = True
                self._out.close()
            if inspect.isgenerator(self._items):
                self._items.close()

    def _send(self, message: bytes, descriptors: Sequence[int]) -> bool:
        with self._sending:
            if not self._stopped:
                self._connection.send_beside(self._out, message, descriptors)
            return not self._stopped

    def stop(self) -> None:
        """Sends no more. A message that has gone in part takes the connection with it, as does an answer that was not waited for."""
        between = self._sending.acquire(blocking=False)
        if between:
            self._stopped = True
            self._sending.release()
        else:
            self._connection.is_cut = True
        if not self._connection.is_idle():
            self._connection.hang_up()


class _AsyncConnection(_Line):
    """A control connection that an event loop waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._socket.setblocking(False)

    async def connect(self, path: str) -> None:
        for pause in (0.001, 0.01, 0.1, 1.0, None):
            try:
                return self._socket.connect(path)
            except BlockingIOError as error:
                # The daemon's queue of connections is full, which no readiness tells the end of.
                if pause is None:
                    raise Unreachable(f"connect to {path}: {error}") from error
                await asyncio.sleep(pause)
            except OSError as error:
                raise Unreachable(f"connect to {path}: {error}") from error

    async def send(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Sends a call; `Unreachable` if nothing of it has gone."""
        self._at_rest = False
        loop, rest = asyncio.get_running_loop(), memoryview(message)
        while rest:
            try:
                rest = rest[self._socket.sendmsg([rest], _rights(descriptors)) :]
                descriptors = ()
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer, None)
            except OSError as error:
                if len(rest) == len(message):
                    raise Unreachable(f"send a call: {error}") from error
                raise _lost() from error

    async def send_beside(self, message: bytes, descriptors: Sequence[int]) -> None:
        """Sends while another task receives."""
        loop, rest = asyncio.get_running_loop(), memoryview(message)
        while rest:
            try:
                rest = rest[self._socket.sendmsg([rest], _rights(descriptors)) :]
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer, None)
                continue
            descriptors, self.is_cut = (), bool(rest)

    async def receive(self, until: Optional[float] = None) -> Dict[str, Any]:
        """The next reply, before `time.monotonic()` is `until`."""
        loop = asyncio.get_running_loop()
        while True:
            reply = self._take()
            if reply is not None:
                return reply
            try:
                received = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader, until)
                continue
            except OSError as error:
                raise _lost() from error
            self._push(received)

    async def _ready(self, add: Callable[..., Any], remove: Callable[..., Any], until: Optional[float]) -> None:
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        add(self._socket, _settle, ready)
        try:
            await asyncio.wait_for(ready, None if until is None else max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise _in_doubt("client_timeout", "the daemon did not answer in time") from error
        finally:
            remove(self._socket)


class _AsyncSender:
    """`_Sender` for one event loop: a task."""

    def __init__(self, connection: _AsyncConnection, items: Union[Iterable[Any], AsyncIterable[Any]]) -> None:
        self.error: Optional[BaseException] = None
        self._connection = connection
        self._task = asyncio.ensure_future(self._run(items))

    async def _run(self, items: Union[Iterable[Any], AsyncIterable[Any]]) -> None:
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    await self._send(item)
            else:
                for item in items:
                    await self._send(item)
            await self._connection.send_beside(_INPUT_END, ())
        except OSError as error:
            _log.debug("send a request's input: %s", error)
        except Exception as error:
            self.error = error
            self._connection.hang_up()

    async def _send(self, item: Any) -> None:
        message, descriptors = _input_chunk(item)
        try:
            await self._connection.send_beside(message, descriptors)
        finally:
            _close_all(descriptors)

    def stop(self) -> None:
        self._task.cancel()


def _why(sender: Union[_Sender, _AsyncSender, None], error: RequestFailed) -> BaseException:
    """Why a request failed whose input could not be made: it was given up for that."""
    return error if sender is None or sender.error is None else sender.error


def _stop(sender: Union[_Sender, _AsyncSender, None]) -> None:
    if sender is not None:
        sender.stop()


LineType = TypeVar("LineType", bound=_Line)


class _Lines(Generic[LineType]):
    """Connections that no call has now; the one that was used last is taken first."""

    def __init__(self, kept_max: int) -> None:
        self._kept_max = kept_max
        self._idle: List[LineType] = []
        self._lock = threading.Lock()
        self._closed = False

    def take(self) -> Optional[LineType]:
        """One of them. The daemon may have closed it meanwhile, which sending tells."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give_back(self, line: LineType) -> None:
        """Keeps one for the next call, if its own is over."""
        with self._lock:
            keep = line.is_idle() and not self._closed and len(self._idle) < self._kept_max
            if keep:
                self._idle.append(line)
        if not keep:
            line.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()


class _Caller(Generic[LineType]):
    """What both clients keep between calls."""

    def __init__(
        self, path: str = CONTROL_PATH, *, connections_max: int = 16, buffer_bytes_max: int = 256 * 1024 * 1024
    ) -> None:
        """`connections_max` connections and `buffer_bytes_max` of lent memory are kept for the next calls."""
        self._path = path
        self._lines: _Lines[LineType] = _Lines(connections_max)
        self._buffers = _Buffers(buffer_bytes_max)

    def buffer(self, size: int) -> Buffer:
        """Memory of at least `size` bytes to lend: use it in `with`."""
        return self._buffers.take(max(1, size))

    def _close(self) -> None:
        self._lines.close()
        self._buffers.close()


class Client(_Caller[_Connection]):
    """Calls pools through the daemon's control socket. Threads may share one: each call has a connection of its own."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is idle; what is in use is closed when its call is over."""
        self._close()

    def call(
        self,
        pool: str,
        command: str,
        args: Json = None,
        *,
        session: Optional[str] = None,
        affinity: Optional[str] = None,
        timeout: Optional[float] = None,
        queue_timeout: Optional[float] = None,
        idempotent: bool = False,
        correlation: Optional[str] = None,
        payload: Optional[Any] = None,
        answer_bytes: int = 0,
        input: Optional[Iterable[Any]] = None,
        bill: bool = False,
    ) -> Reply:
        """Has `command` run by a worker of `pool`, and waits for its answer.

        `payload` is bytes, or a `Buffer` of which `length` bytes are meant. `answer_bytes` lends memory for an answer of that size.
        `timeout` and `queue_timeout` are in seconds; without them the pool's own hold. `idempotent` lets it be run again after a
        worker was lost. `affinity` is "hint", "strict_queue" or "strict_fail_fast". `input` are chunks that are sent to the tool while it
        takes them, each JSON, bytes or an `Answer`; with them a request is run once at most. `bill` has the reply say what was used.

        Raises `ApplicationFailed` if the tool failed, `RequestFailed` if there is no answer, `ControlError` if the call is refused,
        `Unreachable` if there is no daemon.
        """
        parameters = _execute(
            pool, command, args, session, affinity, timeout, queue_timeout, idempotent, correlation, False, bill,
            input is not None,
        )
        with _Execution(self._buffers, parameters, payload, answer_bytes) as execution:
            connection = self._begin(execution.message, execution.descriptors)
            sender: Optional[_Sender] = None
            try:
                sender = None if input is None else _Sender(connection, input)
                return execution.reply(_parameters_of(connection.receive(execution.until)), connection.replies)
            except RequestFailed as error:
                raise _why(sender, error)
            finally:
                _stop(sender)
                self._lines.give_back(connection)

    def stream(
        self,
        pool: str,
        command: str,
        args: Json = None,
        *,
        session: Optional[str] = None,
        affinity: Optional[str] = None,
        timeout: Optional[float] = None,
        queue_timeout: Optional[float] = None,
        idempotent: bool = False,
        correlation: Optional[str] = None,
        payload: Optional[Any] = None,
        answer_bytes: int = 0,
        input: Optional[Iterable[Any]] = None,
        bill: bool = False,
    ) -> Stream:
        """The same for an answer in pieces: iterate over the chunks, then look at `reply`. Reading slowly slows the worker down."""
        parameters = _execute(
            pool, command, args, session, affinity, timeout, queue_timeout, idempotent, correlation, True, bill,
            input is not None,
        )
        execution = _Execution(self._buffers, parameters, payload, answer_bytes)
        connection: Optional[_Connection] = None
        try:
            connection = self._begin(execution.message, execution.descriptors)
            sender = None if input is None else _Sender(connection, input)
        except BaseException as error:
            if connection is not None:
                connection.close()
            execution.close(error)
            raise
        return Stream(execution, connection, self._lines, sender)

    def control(self, method: str, **parameters: Any) -> Dict[str, Any]:
        """Calls any other method of `io.halsup.Control`, and returns the parameters of its one reply."""
        given = {key: value for key, value in parameters.items() if value is not None}
        connection = self._begin(_call(method, given))
        try:
            return _parameters_of(connection.receive())
        finally:
            self._lines.give_back(connection)

    def open_session(self, pool: str, session: Optional[str] = None, ttl: Optional[int] = None) -> str:
        """Opens a session, which is named by the daemon unless it has a name, and returns its name. `ttl` is in seconds."""
        return str(self.control("OpenSession", pool=pool, session=session, ttl_ms=_milliseconds(ttl))["session"])

    def close_session(self, pool: str, session: str) -> None:
        """Closes a session."""
        self.control("CloseSession", pool=pool, session=session)

    def list_sessions(self, pool: Optional[str] = None) -> List[Dict[str, Any]]:
        """The sessions of a pool, or of all."""
        return list(self.control("ListSessions", pool=pool)["sessions"])

    def request_status(self, request: str, pool: Optional[str] = None) -> List[Dict[str, Any]]:
        """The requests of this number or correlation: how far each is, or what became of it. `ControlError` if nothing is known."""
        return list(self.control("RequestStatus", pool=pool, request=request)["requests"])

    def wait_pool(self, pool: Optional[str] = None, complete: bool = False, timeout: Optional[float] = None) -> None:
        """Waits until a worker of the pool, or of each, is ready; with `complete`, until as many are as there are to be.

        Raises `HalsupError` where nothing is on its way that could become ready, `TimeoutError` after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        connection = self._begin(_call("WaitPool", _wait(pool, complete)))
        try:
            _check_there(_parameters_of(connection.receive(until)))
        except RequestFailed as error:
            raise _late(error) from error
        finally:
            self._lines.give_back(connection)

    def pool_stats(self, pool: Optional[str] = None) -> List[Dict[str, Any]]:
        """What a pool, or each, has done and has to do."""
        return list(self.control("PoolStats", pool=pool)["pools"])

    def serve_tools(self, pool: str, tools: Mapping[str, Callable[[ToolCall], Json]], threads: int = 4) -> ToolServer:
        """Serves what the pool's workers call back for, until the end of `with`, in so many threads.

        When this returns, no call is missed any more. A function that raises fails its call alone, as the worker's `CallFailed`.
        """
        if threads < 1:
            raise ValueError("tools are served by at least one thread")
        connection = self._begin(_call("ServeTools", {"pool": pool, "tools": list(tools)}, True))
        try:
            _parameters_of(connection.receive())
        except BaseException:
            connection.close()
            raise
        return ToolServer(self, connection, pool, tools, threads)

    def _begin(self, message: bytes, descriptors: Sequence[int] = ()) -> _Connection:
        """A connection on which the call has gone out."""
        while (idle := self._lines.take()) is not None:
            try:
                idle.send(message, descriptors)
                return idle
            except Unreachable:
                # It was closed by a daemon that ended. Nothing of the call has gone.
                idle.close()
            except BaseException:
                idle.close()
                raise
        connection = _Connection(self._path)
        try:
            connection.send(message, descriptors)
        except BaseException:
            connection.close()
            raise
        return connection


class Stream(Iterator[Chunk]):
    """The chunks of an answer, as they come. What is not read to its end is cancelled by `close`, or at the end of `with`."""

    reply: Optional[Reply]
    """The answer itself, when all chunks were read."""

    def __init__(
        self,
        execution: _Execution,
        connection: _Connection,
        lines: _Lines[_Connection],
        sender: Optional[_Sender] = None,
    ) -> None:
        self.reply = None
        self._sender = sender
        self._execution = execution
        self._connection: Optional[_Connection] = connection
        self._lines = lines

    def __next__(self) -> Chunk:
        if self._connection is None:
            raise StopIteration
        try:
            said = self._connection.receive()
            parameters = _parameters_of(said)
            if said.get("continues") is True:
                return self._execution.chunk(parameters, self._connection.replies)
            self.reply = self._execution.reply(parameters, self._connection.replies)
        except BaseException as error:
            self._end(error)
            if isinstance(error, RequestFailed):
                raise _why(self._sender, error)
            raise
        self._end(None)
        raise StopIteration

    def _end(self, error: Optional[BaseException]) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _stop(self._sender)
            self._lines.give_back(connection)
            self._execution.close(error)

    def close(self) -> None:
        """Takes no more of it. The daemon sees the connection go, and has the worker clean up."""
        self._end(_in_doubt("cancelled", "the stream was closed"))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ToolServer:
    """Functions that workers may call, served in the background until the end of `with`."""

    error: Optional[BaseException]
    """Why it ended, if it was not by `close`."""

    def __init__(
        self,
        client: Client,
        connection: _Connection,
        pool: str,
        tools: Mapping[str, Callable[[ToolCall], Json]],
        threads: int,
    ) -> None:
        self.error = None
        self._client = client
        self._pool = pool
        self._connection = connection
        self._tools = tools
        self._closing = False
        self._calls: queue.SimpleQueue[Optional[ToolCall]] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._read, name="halsup-tools", daemon=True)]
        for number in range(threads):
            self._threads.append(threading.Thread(target=self._serve, name=f"halsup-tools-{number}", daemon=True))
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        try:
            while True:
                said = self._connection.receive()
                parameters = _parameters_of(said)
                if said.get("continues") is not True:
                    break
                self._calls.put(_tool_call(parameters))
            if not self._closing:
                raise _lost()
        except BaseException as error:
            if not self._closing:
                self.error = error
                _log.warning("tools are no longer served: %s", error)
        finally:
            for _ in self._threads:
                self._calls.put(None)

    def _serve(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            try:
                said = _tool_reply(self._pool, call, self._tools[call.tool](call))
            except Exception as error:
                said = _tool_error(self._pool, call, error)
            try:
                self._client.control("ReplyTool", **said)
            except HalsupError as error:
                # Its worker was told already, or waits no more.
                _log.warning("reply to a call of %s: %s", call.tool, error)

    def close(self) -> None:
        """Serves no more calls; those that are being served get their replies first."""
        self._closing = True
        # What was called goes on; the daemon says when the last of it is over.
        self._connection.say_no_more()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def __enter__(self) -> ToolServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tool_call(parameters: Mapping[str, Any]) -> ToolCall:
    return ToolCall(
        call=str(parameters["call"]),
        tool=str(parameters["tool"]),
        args=parameters.get("args"),
        request=str(parameters.get("request") or ""),
        worker=str(parameters.get("worker") or ""),
        session=parameters.get("session"),
        correlation=str(parameters.get("correlation") or ""),
        deadline=None if parameters.get("deadline_ms") is None else time.monotonic() + int(parameters["deadline_ms"]) / 1000,
    )


def _tool_reply(pool: str, call: ToolCall, result: Json) -> Dict[str, Any]:
    """What is said of a result; raises if it cannot be."""
    text = _write_json(result)
    if len(text) > _VALUE_BYTES_MAX:
        raise ToolError(f"the reply is {len(text)} bytes long, at most {_VALUE_BYTES_MAX} may be", reason="reply_too_long")
    return {"pool": pool, "call": call.call, "result": result}


def _tool_error(pool: str, call: ToolCall, error: Exception) -> Dict[str, Any]:
    if isinstance(error, ToolError):
        reason, message = error.reason or "tool_error", error.message
    else:
        reason, message = type(error).__name__, str(error) or type(error).__name__
    said = {"reason": _cut(reason, _REASON_BYTES_MAX), "message": _cut(message, _MESSAGE_BYTES_MAX)}
    return {"pool": pool, "call": call.call, "error": said}


class AsyncClient(_Caller[_AsyncConnection]):
    """`Client` for one event loop: the same methods, to be awaited. A task that is cancelled cancels its request."""

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes what is idle; what is in use is closed when its call is over."""
        self._close()

    async def call(
        self,
        pool: str,
        command: str,
        args: Json = None,
        *,
        session: Optional[str] = None,
        affinity: Optional[str] = None,
        timeout: Optional[float] = None,
        queue_timeout: Optional[float] = None,
        idempotent: bool = False,
        correlation: Optional[str] = None,
        payload: Optional[Any] = None,
        answer_bytes: int = 0,
        input: Optional[Union[Iterable[Any], AsyncIterable[Any]]] = None,
        bill: bool = False,
    ) -> Reply:
        """See `Client.call`."""
        parameters = _execute(
            pool, command, args, session, affinity, timeout, queue_timeout, idempotent, correlation, False, bill,
            input is not None,
        )
        with _Execution(self._buffers, parameters, payload, answer_bytes) as execution:
            connection = await self._begin(execution.message, execution.descriptors)
            sender = None if input is None else _AsyncSender(connection, input)
            try:
                return execution.reply(_parameters_of(await connection.receive(execution.until)), connection.replies)
            except RequestFailed as error:
                raise _why(sender, error)
            finally:
                _stop(sender)
                self._lines.give_back(connection)

    async def stream(
        self,
        pool: str,
        command: str,
        args: Json = None,
        *,
        session: Optional[str] = None,
        affinity: Optional[str] = None,
        timeout: Optional[float] = None,
        queue_timeout: Optional[float] = None,
        idempotent: bool = False,
        correlation: Optional[str] = None,
        payload: Optional[Any] = None,
        answer_bytes: int = 0,
        input: Optional[Union[Iterable[Any], AsyncIterable[Any]]] = None,
        bill: bool = False,
    ) -> AsyncStream:
        """See `Client.stream`: `async for chunk in await client.stream(…)`."""
        parameters = _execute(
            pool, command, args, session, affinity, timeout, queue_timeout, idempotent, correlation, True, bill,
            input is not None,
        )
        execution = _Execution(self._buffers, parameters, payload, answer_bytes)
        try:
            connection = await self._begin(execution.message, execution.descriptors)
        except BaseException as error:
            execution.close(error)
            raise
        return AsyncStream(execution, connection, self._lines, None if input is None else _AsyncSender(connection, input))

    async def control(self, method: str, **parameters: Any) -> Dict[str, Any]:
        """See `Client.control`."""
        given = {key: value for key, value in parameters.items() if value is not None}
        connection = await self._begin(_call(method, given))
        try:
            return _parameters_of(await connection.receive())
        finally:
            self._lines.give_back(connection)

    async def open_session(self, pool: str, session: Optional[str] = None, ttl: Optional[int] = None) -> str:
        """See `Client.open_session`."""
        return str((await self.control("OpenSession", pool=pool, session=session, ttl_ms=_milliseconds(ttl)))["session"])

    async def close_session(self, pool: str, session: str) -> None:
        """See `Client.close_session`."""
        await self.control("CloseSession", pool=pool, session=session)

    async def list_sessions(self, pool: Optional[str] = None) -> List[Dict[str, Any]]:
        """See `Client.list_sessions`."""
        return list((await self.control("ListSessions", pool=pool))["sessions"])

    async def request_status(self, request: str, pool: Optional[str] = None) -> List[Dict[str, Any]]:
        """See `Client.request_status`."""
        return list((await self.control("RequestStatus", pool=pool, request=request))["requests"])

    async def wait_pool(self, pool: Optional[str] = None, complete: bool = False, timeout: Optional[float] = None) -> None:
        """See `Client.wait_pool`."""
        until = None if timeout is None else time.monotonic() + timeout
        connection = await self._begin(_call("WaitPool", _wait(pool, complete)))
        try:
            _check_there(_parameters_of(await connection.receive(until)))
        except RequestFailed as error:
            raise _late(error) from error
        finally:
            self._lines.give_back(connection)

    async def pool_stats(self, pool: Optional[str] = None) -> List[Dict[str, Any]]:
        """See `Client.pool_stats`."""
        return list((await self.control("PoolStats", pool=pool))["pools"])

    async def serve_tools(
        self,
        pool: str,
        tools: Mapping[str, Callable[[ToolCall], Awaitable[Json]]],
        ready: Optional[asyncio.Event] = None,
    ) -> None:
        """Serves what the pool's workers call back for, until its task is cancelled. Each call is a task of its own.

        `ready` is set when no call is missed any more.
        """
        connection = await self._begin(_call("ServeTools", {"pool": pool, "tools": list(tools)}, True))
        serving: Set[asyncio.Task[None]] = set()
        try:
            _parameters_of(await connection.receive())
            if ready is not None:
                ready.set()
            while True:
                said = await connection.receive()
                parameters = _parameters_of(said)
                if said.get("continues") is not True:
                    raise _lost()
                call = _tool_call(parameters)
                task = asyncio.ensure_future(self._serve(pool, call, tools))
                serving.add(task)
                task.add_done_callback(serving.discard)
        finally:
            connection.close()
            for task in serving:
                task.cancel()

    async def _serve(
        self, pool: str, call: ToolCall, tools: Mapping[str, Callable[[ToolCall], Awaitable[Json]]]
    ) -> None:
        try:
            said = _tool_reply(pool, call, await tools[call.tool](call))
        except Exception as error:
            said = _tool_error(pool, call, error)
        try:
            await self.control("ReplyTool", **said)
        except HalsupError as error:
            _log.warning("reply to a call of %s: %s", call.tool, error)

    async def _begin(self, message: bytes, descriptors: Sequence[int] = ()) -> _AsyncConnection:
        """A connection on which the call has gone out."""
        while (idle := self._lines.take()) is not None:
            try:
                await idle.send(message, descriptors)
                return idle
            except Unreachable:
                # It was closed by a daemon that ended. Nothing of the call has gone.
                idle.close()
            except BaseException:
                idle.close()
                raise
        connection = _AsyncConnection()
        try:
            await connection.connect(self._path)
            await connection.send(message, descriptors)
        except BaseException:
            connection.close()
            raise
        return connection


class AsyncStream(AsyncIterator[Chunk]):
    """`Stream` for one event loop."""

    reply: Optional[Reply]
    """The answer itself, when all chunks were read."""

    def __init__(
        self,
        execution: _Execution,
        connection: _AsyncConnection,
        lines: _Lines[_AsyncConnection],
        sender: Optional[_AsyncSender] = None,
    ) -> None:
        self.reply = None
        self._sender = sender
        self._execution = execution
        self._connection: Optional[_AsyncConnection] = connection
        self._lines = lines

    async def __anext__(self) -> Chunk:
        if self._connection is None:
            raise StopAsyncIteration
        try:
            said = await self._connection.receive()
            parameters = _parameters_of(said)
            if said.get("continues") is True:
                return self._execution.chunk(parameters, self._connection.replies)
            self.reply = self._execution.reply(parameters, self._connection.replies)
        except BaseException as error:
            self._end(error)
            if isinstance(error, RequestFailed):
                raise _why(self._sender, error)
            raise
        self._end(None)
        raise StopAsyncIteration

    def _end(self, error: Optional[BaseException]) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _stop(self._sender)
            self._lines.give_back(connection)
            self._execution.close(error)

    async def aclose(self) -> None:
        """Takes no more of it. The daemon sees the connection go, and has the worker clean up."""
        self._end(_in_doubt("cancelled", "the stream was closed"))

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
