#!/usr/bin/env python3
"""A worker that says what it would say under systemd: ready, alive, what it is doing, stopping.

Run it under halsup with

    [pool.beats]
    command = ["python3", "/path/to/notify_worker.py"]
    ready = "notify"
    heartbeat = { interval = "2s", max_missed = 3 }

or by itself: without NOTIFY_SOCKET nothing is sent. Python's standard library is all it needs; copy what you like.
"""

import os
import signal
import socket
import threading


class Supervisor:
    """The sd_notify protocol: one datagram of KEY=value lines for each thing to say."""

    def __init__(self, environment=os.environ):
        address = environment.get("NOTIFY_SOCKET", "")
        # The longest time between two beats, in microseconds; without it nobody expects any.
        self.watchdog_seconds = int(environment.get("WATCHDOG_USEC", "0")) / 1_000_000
        self._socket = None
        if address:
            # A leading @ stands for the NUL of an abstract name.
            address = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.connect(address)

    def say(self, **fields):
        if self._socket is not None:
            self._socket.send("\n".join(f"{key}={value}" for key, value in fields.items()).encode())

    def ready(self, status):
        self.say(READY=1, STATUS=status)

    def beat(self, status):
        self.say(WATCHDOG=1, STATUS=status)

    def stopping(self):
        self.say(STOPPING=1)


def main():
    supervisor = Supervisor()
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())

    # ... open files, connect, warm up; then:
    supervisor.ready("warm")

    # Beat from the loop that does the work, not from a thread of its own: a beat says that the work goes on.
    pause = supervisor.watchdog_seconds / 2 or 1
    rounds = 0
    while not end.wait(pause):
        rounds += 1
        supervisor.beat(f"{rounds} rounds")

    supervisor.stopping()


if __name__ == "__main__":
    main()
