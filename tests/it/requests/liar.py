"""A worker that knows the channel and keeps to none of its rules: each command is a way to break one."""

import array
import fcntl
import json
import os
import socket
import tempfile

SHRINK, GROW, WRITE, SEAL = 2, 4, 8, 1
IMMUTABLE = SHRINK | GROW | WRITE | SEAL
channel = socket.socket(fileno=int(os.environ["HALSUP_CHANNEL_FD"]))


def say(descriptors=(), **frame):
    raw(json.dumps(frame).encode(), descriptors)


def raw(message, descriptors=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([message], rights)


def memory(size, seals, content=b""):
    fd = os.memfd_create("payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, 1033, seals)
    return fd


def file():
    made = tempfile.TemporaryFile(dir="/tmp")
    made.write(b"x" * 100)
    made.flush()
    return os.dup(made.fileno())


def fifo():
    path = f"/tmp/fifo{os.getpid()}"
    if not os.path.exists(path):
        os.mkfifo(path)
    return os.open(path, os.O_RDWR)


# HARDENING's list of what a payload must not be, each as a descriptor of its own.
BAD = {
    "pipe": lambda: os.pipe()[0],
    "fifo": fifo,
    "socket": lambda: os.dup(socket.socketpair()[0].detach()),
    "directory": lambda: os.open("/", os.O_RDONLY),
    "zero": lambda: os.open("/dev/zero", os.O_RDONLY),
    "path": lambda: os.open("/proc/self/exe", os.O_PATH),
    "memory of itself": lambda: os.open("/proc/self/mem", os.O_RDONLY),
    "text of the kernel": lambda: os.open("/proc/self/status", os.O_RDONLY),
    "file": file,
    "unsealed": lambda: memory(100, 0),
    "may shrink": lambda: memory(100, GROW | WRITE | SEAL),
    "may grow": lambda: memory(100, SHRINK | WRITE | SEAL),
    "may be written": lambda: memory(100, SHRINK | GROW | SEAL),
    "may be sealed": lambda: memory(100, SHRINK | GROW | WRITE),
    "short": lambda: memory(9, IMMUTABLE),
    "itself": lambda: os.dup(channel.fileno()),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
}


def answer(frame):
    say(kind="result", id=frame["id"], result=frame.get("args"))


def number(frame, distance):
    return f"{int(frame['id'], 16) + distance:016x}"


def forge(frame):
    for distance in range(-40, 41):
        if distance:
            say(kind="result", id=number(frame, distance), result="forged")
            say(kind="error", id=number(frame, distance), error={"message": "forged"})
            say(kind="chunk", id=number(frame, distance), data="forged")
    answer(frame)


late = []


def serve(frame):
    command, args = frame["command"], frame.get("args")
    if command == "echo":
        for earlier in late:
            say(kind="result", id=earlier["id"], result="too late")
        late.clear()
        answer(frame)
    elif command == "forge":
        forge(frame)
    elif command == "twice":
        answer(frame)
        say(kind="result", id=frame["id"], result="again")
        say(kind="error", id=frame["id"], error={"message": "and again"})
        late.append(frame)
    elif command == "bad":
        fd = BAD[args]()
        say([fd], kind="result", id=frame["id"], payload={"bytes": 10})
        os.close(fd)
    elif command == "none":
        say(kind="result", id=frame["id"], payload={"bytes": 10})
    elif command == "huge":
        fd = memory(1 << 45, IMMUTABLE)
        say([fd], kind="result", id=frame["id"], payload={"bytes": 1 << 45})
        os.close(fd)
        answer(frame)
    elif command == "not lent":
        say(kind="result", id=frame["id"], payload={"bytes": 10, "in_request": True})
    elif command == "many":
        given = [memory(100, IMMUTABLE) for _ in range(100)]
        for _ in range(20):
            say(given, kind="event", event="gifts")
            say(given, kind="result", id=number(frame, 1000), payload={"bytes": 10})
        say(given, kind="result", id=frame["id"], payload={"bytes": 10})
        for fd in given:
            os.close(fd)
    elif command == "unasked":
        fd = memory(100, IMMUTABLE)
        say([fd], kind="result", id=frame["id"], result="beside")
        os.close(fd)
    elif command == "junk":
        for piece in range(args):
            raw((b"", b"\0", b"{", b"[]", b"null", b"\xff" * 100, b'{"kind":"result"}', b'{"kind":"x"}', b"[" * 60_000)[piece % 9] or b" ")
        answer(frame)
    elif command == "flood":
        for piece in range(args):
            say(kind="chunk", id=frame["id"], data=piece)
        answer(frame)
    elif command == "calls":
        for piece in range(args):
            say(kind="call", call=piece, id=frame["id"], tool="no such tool", args=None)
        heard = [json.loads(channel.recv(65536)) for _ in range(args)]
        reasons = {one["error"]["reason"] for one in heard if one["kind"] == "reply"}
        say(kind="result", id=frame["id"], result=sorted(reasons))
    elif command == "call back":
        for piece in range(args["count"]):
            given = {"tool": args.get("tool", "add"), "args": "x" * args.get("size", 0)}
            of = args.get("of") or number(frame, args.get("distance", 0))
            say(kind="call", call=args.get("number", piece), id=of, **given)
        if args.get("last"):
            # Its reply says that all before it were heard.
            say(kind="call", call=1_000_000, id=frame["id"], tool="no such tool")
        with open("/mnt/ledger", "a") as ledger:
            ledger.write("said all\n")
        reasons = []
        while len(reasons) < args["replies"]:
            one = json.loads(channel.recv(65536))
            if one["kind"] == "ping":
                say(kind="pong", id=one["id"])
            elif one["kind"] == "reply":
                reasons.append(one["error"]["reason"] if "error" in one else one.get("result"))
                with open("/mnt/ledger", "a") as ledger:
                    ledger.write(f"told {reasons[-1]}\n")
        say(kind="result", id=frame["id"], result=sorted(reasons))
    elif command == "take":
        # All that may be granted, and then it does not read for as long as the test likes.
        say(kind="credit", id=frame["id"], count=65_536)
        with open("/mnt/ledger", "a") as ledger:
            ledger.write("granted\n")
        with open("/mnt/gate", "rb", buffering=0) as pipe:
            pipe.read(1)
        taken = []
        while True:
            one = json.loads(channel.recv(65536))
            if one["kind"] == "ping":
                say(kind="pong", id=one["id"])
            elif one["kind"] == "chunk":
                taken += [one["data"][0]] if "data" in one else []
                if one.get("end"):
                    break
        say(kind="result", id=frame["id"], result=taken)
    elif command == "grant":
        # None of these is its to grant, or nobody's.
        for of in args["of"] + [number(frame, 1)]:
            say(kind="credit", id=of, count=65_536)
        for count in (0, -1, 65_537, 1 << 40, None, "1"):
            say(kind="credit", id=frame["id"], count=count)
        for count in (65_536, 65_536, 1):
            say(kind="credit", id=frame["id"], count=count)
        answer(frame)
    elif command == "bad chunk":
        fd = BAD[args]()
        say([fd], kind="chunk", id=frame["id"], payload={"bytes": 10})
        os.close(fd)
        answer(frame)
    elif command == "late":
        late.append(frame)
    elif command == "silence":
        while True:
            channel.recv(65536)


say(kind="hello", protocol=1)
say(kind="ready")
while True:
    frame = json.loads(channel.recv(65536))
    if frame["kind"] == "ping":
        say(kind="pong", id=frame["id"])
    elif frame["kind"] == "request":
        serve(frame)
    elif frame["kind"] == "cancel":
        for earlier in [one for one in late if one["id"] == frame["id"]]:
            say(kind="error", id=earlier["id"], error={"message": "cancelled", "reason": "cancelled"})
