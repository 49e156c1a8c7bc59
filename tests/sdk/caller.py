"""Calls a real daemon with the SDK: `caller.py SOCKET WHAT`. Its pool `web` runs worker.py; what is wrong is an exception."""

import asyncio
import sys
import threading

from halsup import ApplicationFailed, AsyncClient, Client, ControlError, RequestFailed, ToolError


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def calls(client):
    """Answers, errors, and requests that overlap."""
    assert client.call("web", "echo", {"a": [1, 1.0, None]}).result == {"a": [1, 1.0, None]}
    said = client.call("web", "who am i", correlation="c", timeout=50).result
    assert said["correlation"] == "c" and 0 < said["remaining"] <= 50, said
    error = raises(ApplicationFailed, lambda: client.call("web", "fail"))
    assert (error.reason, error.category, error.details) == ("full", "disk", {"free": 0}), vars(error)
    assert "KeyError" in raises(ApplicationFailed, lambda: client.call("web", "crash")).traceback
    assert raises(ControlError, lambda: client.call("nobody", "echo")).name == "NotFound"
    names = []
    threads = [threading.Thread(target=lambda: names.append(client.call("web", "meet").result)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 4, names


def memory(client):
    """Bytes there and back: in lent memory, in memory of the worker's own, and as JSON that no frame could hold."""
    for text in (b"abc", b"", b"x" * 3_000_000):
        assert client.call("web", "backwards", payload=text).payload == text[::-1]
    assert client.call("web", "large", 1_000_000).payload == b"z" * 1_000_000
    assert client.call("web", "large", 1_000_000, answer_bytes=1_000_000).payload == b"z" * 1_000_000
    assert client.call("web", "echo", "y" * 200_000).result == "y" * 200_000
    with client.buffer(100) as buffer:
        buffer.fill(b"abc")
        reply = client.call("web", "backwards", payload=buffer)
        assert reply.payload == b"cba" and buffer.view[:3] == b"cba"
    # As many as have been lent are mapped at the worker, however often they were.
    before = len(client.call("web", "mapped").result["mapped"])
    for _ in range(50):
        client.call("web", "backwards", payload=b"abc")
    assert len(client.call("web", "mapped").result["mapped"]) == before


def streams(client):
    """Ten thousand chunks in order; and a reader that stalls holds up nobody else."""
    stalled = client.stream("web", "count", 100_000)
    assert next(stalled).data == 0
    whole = client.stream("web", "count", 10_000)
    assert [chunk.data for chunk in whole] == list(range(10_000))
    assert whole.reply.result == "counted"
    pieces = [chunk.payload and bytes(chunk.payload) for chunk in client.stream("web", "pieces")]
    assert pieces == [b"bytes", b"both", None], pieces
    stalled.close()
    # Its thread is free again: all four are.
    calls(client)


def asks(client):
    """What there is to know of pools, requests and sessions."""
    client.wait_pool("web", complete=True, timeout=60)
    client.wait_pool()
    assert raises(ControlError, lambda: client.wait_pool("nobody")).name == "NotFound"
    said = client.call("web", "echo", 1, correlation="asked", session="kept")
    for name in (said.request, "asked"):
        (told,) = client.request_status(name)
        assert (told["state"], told["request"], told["worker"]) == ("answered", said.request, "web.0"), told
    assert raises(ControlError, lambda: client.request_status("nothing")).name == "NotFound"
    (session,) = client.list_sessions("web")
    assert (session["session"], session["worker"], session["requests"]) == ("kept", "web.0", 0), session
    client.close_session("web", "kept")
    assert client.list_sessions() == []

    async def run():
        async with AsyncClient(sys.argv[1]) as loop:
            await loop.wait_pool("web", timeout=60)
            assert [one["state"] for one in await loop.request_status("asked", "web")] == ["answered"]

    asyncio.run(run())


def full(call):
    raise ToolError(f"{call.worker} asks too much", reason="full")


def tools(client):
    """Workers call back, from threads and from an event loop, for what threads of this program serve."""
    assert client.call("web", "ask").result["reason"] == "tool_not_found"
    seen = []

    def tool(call):
        seen.append(call)
        return {"got": call.args}

    with client.serve_tools("web", {"tool": tool, "beside": tool}, threads=2) as server:
        for command in ("ask", "ask_async"):
            assert client.call("web", command, {"x": [1, None]}, session="s", timeout=60).result == {"got": {"x": [1, None]}}
        assert seen[0].worker == "web.0" and seen[0].session == "s" and seen[0].deadline is not None, seen[0]
        threads = [threading.Thread(target=client.call, args=("web", "ask", number)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(call.args for call in seen[2:]) == list(range(20))
    assert server.error is None, server.error
    for function, reason in ((full, "full"), (lambda call: {}["x"], "KeyError"), (lambda call: object(), "TypeError")):
        with client.serve_tools("web", {"tool": function}):
            said = client.call("web", "ask").result
            assert said["reason"] == reason, said
    with client.serve_tools("web", {"tool": lambda call: "x" * 100_000}):
        assert client.call("web", "ask").result["reason"] == "reply_too_long"
    assert client.call("web", "ask").result["reason"] == "tool_not_found"
    last(client)


def last(client):
    """What is being served when no more is to be is replied to."""
    called, go_on, results = threading.Event(), threading.Event(), []

    def tool(call):
        # Until the daemon has heard that this is the end, further calls come.
        if called.is_set():
            return {"reason": "served"}
        called.set()
        go_on.wait(60)
        return "in the end"

    server = client.serve_tools("web", {"tool": tool})
    caller = threading.Thread(target=lambda: results.append(client.call("web", "ask").result))
    caller.start()
    assert called.wait(60)
    closing = threading.Thread(target=server.close)
    closing.start()
    while client.call("web", "ask", timeout=60).result["reason"] != "tool_not_found":
        pass
    go_on.set()
    caller.join()
    closing.join()
    assert results == ["in the end"] and server.error is None, (results, server.error)


def tools_async(client):
    """The same for a program with an event loop."""

    async def run():
        async with AsyncClient(sys.argv[1]) as loop:

            async def tool(call):
                if call.args == "full":
                    full(call)
                await asyncio.sleep(0)
                return [call.args]

            ready = asyncio.Event()
            serving = asyncio.ensure_future(loop.serve_tools("web", {"tool": tool}, ready))
            await ready.wait()
            said = await asyncio.gather(*(loop.call("web", "ask_async", number) for number in range(20)))
            assert [one.result for one in said] == [[number] for number in range(20)]
            assert (await loop.call("web", "ask", "full")).result["reason"] == "full"
            serving.cancel()
            try:
                await serving
            except asyncio.CancelledError:
                pass
            while (await loop.call("web", "ask", 1)).result != {
                "reason": "tool_not_found",
                "message": 'nobody serves a tool "tool"',
            }:
                pass

    asyncio.run(run())


def hold(client):
    """Holds until the worker is asked for it no more."""
    error = raises(RequestFailed, lambda: client.call("web", "hold", timeout=float(sys.argv[3])))
    assert error.outcome == "in_doubt", vars(error)
    print(error.reason)


def echo(client):
    print(client.call("web", "echo", "still here", timeout=60).generation)


if __name__ == "__main__":
    with Client(sys.argv[1]) as client:
        globals()[sys.argv[2]](client)
