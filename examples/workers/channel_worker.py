#!/usr/bin/env python3
"""A worker that speaks halsup's channel: hello, ready, and a pong for each ping.

Run it under halsup with

    [pool.channel]
    command = ["python3", "/path/to/channel_worker.py"]
    ready = "channel"

Heartbeats are on by themselves. Python's standard library is all it needs; copy what you like.
"""

import json
import os
import socket
import sys

FRAME_BYTES_MAX = 64 * 1024
PROTOCOL = 1


class Channel:
    """One JSON object in each message of a SOCK_SEQPACKET socket that the program is born with."""

    def __init__(self, environment=os.environ):
        self._socket = socket.socket(fileno=int(environment["HALSUP_CHANNEL_FD"]))
        # Programs that this one starts do not get it.
        self._socket.set_inheritable(False)
        self.send(kind="hello", protocol=PROTOCOL, pid=os.getpid())

    def send(self, **frame):
        self._socket.send(json.dumps(frame).encode())

    def receive(self):
        """The next frame, or None where the supervisor is gone."""
        message = self._socket.recv(FRAME_BYTES_MAX)
        return json.loads(message) if message else None


def main():
    if "HALSUP_CHANNEL_FD" not in os.environ:
        sys.exit("channel_worker: HALSUP_CHANNEL_FD is not set; ready or heartbeat has to be \"channel\"")
    channel = Channel()

    # ... open files, connect, warm up; then:
    channel.send(kind="ready")

    while (frame := channel.receive()) is not None:
        if frame["kind"] == "hello" and frame["protocol"] != PROTOCOL:
            sys.exit(f"channel_worker: the supervisor speaks protocol {frame['protocol']}")
        if frame["kind"] == "ping":
            channel.send(kind="pong", id=frame["id"])
        # The other kinds are about requests, for which there is examples/sdk/halsup.py: pass over them.


if __name__ == "__main__":
    main()
