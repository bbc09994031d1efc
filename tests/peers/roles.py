"""What an end of a tunnel does once it has a pool: take visitors, or be visited."""

import hashlib
import json
import queue
import struct
import sys
import threading

from wire import CONTROL, TIMEOUT, Lines, ProtocolError

BODY_SIZE = 300_000


def say(what, **more):
    """One line to whoever has started us."""
    print(json.dumps({"event": what, **more}), flush=True)


def body_of(seed):
    """Bytes that are cheap to make."""
    block = b"".join(hashlib.sha256(struct.pack(">II", seed, i)).digest() for i in range(64))
    return (block * (BODY_SIZE // len(block) + 1))[:BODY_SIZE]


def enclose(body):
    """A body as it goes over the wire: its length, its digest, itself."""
    return struct.pack(">Q", len(body)) + hashlib.sha256(body).digest() + body


class Reader:
    """Exact counts of bytes of a channel."""

    def __init__(self, channel):
        self.channel = channel
        self.buffer = bytearray()

    def take(self, count):
        while len(self.buffer) < count:
            data = self.channel.receive()
            if not data:
                raise ProtocolError(f"an end after {len(self.buffer)} of {count} bytes")
            self.buffer += data
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def body(self):
        size, digest = struct.unpack(">Q32s", self.take(40))
        body = self.take(size)
        if hashlib.sha256(body).digest() != digest:
            raise ProtocolError("the body is another one")
        return body

    def expect_end(self):
        rest = bytes(self.buffer) + self.channel.receive()
        if rest:
            raise ProtocolError(f"{len(rest)} bytes after the last one")
        if self.channel.is_broken:
            raise ProtocolError("broken off where an end was due")


class Peer:
    """An end of a tunnel: its pool, its control channel, and the visitors that are told of."""

    def __init__(self, session, side, fingerprint=None):
        self.session = session
        self.fingerprint = fingerprint
        self.lines = Lines(session, side)
        self.idle = {}
        self.control = None
        self.visitors = queue.Queue()
        self.checks = queue.Queue()
        self.changed = threading.Condition()
        self.writes = threading.Lock()
        self.failure = None
        self.checked = None

    def add(self, pool_id, channel):
        with self.changed:
            if pool_id == CONTROL:
                self.control = channel
            else:
                self.idle[pool_id] = channel
            self.changed.notify_all()

    def wait(self, what, find):
        with self.changed:
            found = self.changed.wait_for(lambda: self.failure or find(), TIMEOUT)
            if self.failure or not found:
                raise ProtocolError(f"{self.failure or 'not in time'}: {what}")
            return find()

    def take(self, pool_id):
        self.wait("a pool connection", lambda: pool_id in self.idle)
        return self.idle.pop(pool_id)

    def take_any(self):
        self.wait("an idle pool connection", lambda: self.idle)
        return self.idle.popitem()

    def send(self, action, **members):
        with self.writes:
            self.control.send(self.lines.encode({"action": action, **members}))

    def start(self):
        """Serves the control channel from now on."""
        self.wait("the control channel", lambda: self.control)
        threading.Thread(target=self._listen, daemon=True).start()
        self.send("ping")

    def _listen(self):
        try:
            while data := self.control.receive():
                for signal in self.lines.feed(data):
                    self._take(signal)
            self._fail("the control channel has ended")
        except Exception as error:  # Shown by whoever waits.
            self._fail(repr(error))

    def _fail(self, why):
        with self.changed:
            self.failure = self.failure or why
            self.changed.notify_all()
        self.visitors.put(None)

    def _take(self, signal):
        action = signal["action"]
        if action == "ping":
            self.send("pong")
        elif action in ("tcp", "udp"):
            self.visitors.put(signal)
        elif action == "verify":
            if signal.get("fp") != self.fingerprint:
                raise ProtocolError(f"another certificate: {signal}")
            # Both sides may choose the same one.
            pool_id = signal["id"]
            self.wait("a pool connection", lambda: pool_id in self.idle or pool_id == self.checked)
            channel = self.idle.pop(pool_id, None)
            if channel:
                channel.close()
            self.checks.put(signal)

    def next_visitor(self):
        signal = self.visitors.get(timeout=TIMEOUT)
        if signal is None:
            raise ProtocolError(self.failure)
        return signal["action"], signal.get("remote"), self.take(signal["id"])

    def exchange_checks(self):
        """Section 6: v1 sides show each other what they know of the certificate."""
        if self.session.is_native or self.session.offer["tls"] != "1":
            return
        self.wait("an idle pool connection", lambda: self.idle)
        with self.changed:
            pool_id, channel = self.idle.popitem()
            self.checked = pool_id
        self.send("verify", id=pool_id, fp=self.fingerprint)
        if self.checks.get(timeout=TIMEOUT)["id"] != pool_id:
            # The other side closes what it was asked about.
            channel.receive()
        channel.close()

    def check_pings(self):
        """Section 5.1 and 5.5 of the RFCs: whoever is asked answers."""
        self.control.ping()
        pool_id, channel = self.take_any()
        channel.ping()
        self.idle[pool_id] = channel

    # At the exit.

    def serve(self, in_the_middle=None):
        """A visitor who is served here, as the target would."""
        action, remote, channel = self.next_visitor()
        if not remote:
            raise ProtocolError("a visitor without an address")
        reader = Reader(channel)
        if action == "udp":
            if self.session.is_native:
                size = struct.unpack(">H", reader.take(2))[0]
                datagram = reader.take(size)
                channel.send(struct.pack(">H", size) + datagram[::-1])
            else:
                channel.send(channel.receive()[::-1])
            say("datagram")
            return
        body = reader.body()
        answer = enclose(body[::-1])
        half = len(answer) // 2
        channel.send(answer[:half])
        if in_the_middle:
            in_the_middle()
        channel.send(answer[half:])
        if channel.has_half_close:
            # The visitor speaks on after our end.
            channel.finish()
            if reader.take(10) != b"still here":
                raise ProtocolError("other words after our end")
            reader.expect_end()
        else:
            channel.close()
        say("served", size=len(body))

    # At the entry.

    def visit(self, seed=1, in_the_middle=None):
        """A visitor of ours, whose target sends back what it got, turned round."""
        pool_id, channel = self.take_any()
        reader = Reader(channel)
        body = body_of(seed)
        sent = enclose(body)
        half = len(sent) // 2
        # Bytes may be there before their signal.
        channel.send(sent[:1000])
        self.send("tcp", remote=f"203.0.113.{seed % 200 + 1}:4711", id=pool_id)
        channel.send(sent[1000:half])
        if in_the_middle:
            in_the_middle()
        channel.send(sent[half:])
        if reader.body() != body[::-1]:
            raise ProtocolError("the answer is another one")
        if channel.has_half_close:
            channel.send(b"still here")
            channel.finish()
            reader.expect_end()
        else:
            channel.close()
        say("visited", seed=seed)

    def send_datagram(self):
        pool_id, channel = self.take_any()
        self.send("udp", remote="203.0.113.9:4712", id=pool_id)
        if self.session.is_native:
            channel.send(struct.pack(">H", 8) + b"datagram")
            answer = Reader(channel).take(10)
            if answer != struct.pack(">H", 8) + b"margatad":
                raise ProtocolError(f"another datagram: {answer!r}")
        else:
            channel.send(b"datagram")
            if Reader(channel).take(8) != b"margatad":
                raise ProtocolError("another datagram")
        say("datagram")


def run(work):
    """Ends with status 1 and the reason on an error, and 0 else; threads are left behind."""
    import os
    import traceback

    status = 0
    try:
        work()
        say("done")
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
