"""Pool connections of HTTP/2, by the library h2."""

import queue
import socket
import threading
import time

import h2.events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from tls import plain_end, server_context
from wire import TIMEOUT, ProtocolError

# Small, so that windows have to be given back again and again.
WINDOW_SIZE = 20_000

# A goodbye has been heard after this (seconds).
GOODBYE_TIME = 2.0


class Stream:
    """One pool connection."""

    has_half_close = True

    def __init__(self, link, number):
        self.link = link
        self.number = number
        self.arrived = queue.Queue()
        self.headers = None
        self.is_over = False
        self.was_reset = None
        self.leftover = b""

    def send(self, data):
        self.link.send(self.number, data)

    def receive(self):
        """Some bytes; none at the end of the other direction."""
        if self.leftover:
            data, self.leftover = self.leftover, b""
            return data
        if self.is_over:
            return b""
        data, counted = self.arrived.get(timeout=TIMEOUT)
        # Given back only now: whoever does not read holds up its sender.
        self.link.give_back(self.number, counted)
        if not data:
            self.is_over = True
        return data

    def finish(self):
        """Ends our direction."""
        self.link.finish(self.number)

    def close(self):
        self.reset()

    def reset(self):
        """Breaks off both directions."""
        self.link.reset(self.number)

    @property
    def is_broken(self):
        """Whether the other side has broken it off."""
        return self.was_reset is not None

    def ping(self):
        """Waits for the answer to a ping."""
        self.link.ping()


class Link:
    """One connection, with a thread that reads."""

    def __init__(self, sock, is_client, streams_max=None, accept=None):
        self.sock = sock
        # A write must not wait for ever for a side that does not read.
        self.sock.settimeout(None)
        self.streams = {}
        self.accept = accept
        self.open_most = 0
        self.last_allowed = None
        self.goodbye_at = None
        self.late = []
        self.end = None
        self.pongs = queue.Queue()
        self.changed = threading.Condition(threading.RLock())
        config = H2Configuration(client_side=is_client, header_encoding="utf-8")
        self.h2 = H2Connection(config)
        settings = {SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_SIZE}
        if is_client:
            settings[SettingCodes.ENABLE_PUSH] = 0
        elif streams_max:
            settings[SettingCodes.MAX_CONCURRENT_STREAMS] = streams_max
        self.streams_max = streams_max
        self.are_settings_known = False
        self.too_many = []
        with self.changed:
            self._set(settings)
            self.h2.initiate_connection()
            # The limit is looked after here: before it is known nobody can keep to it.
            if streams_max:
                self._set({SettingCodes.MAX_CONCURRENT_STREAMS: 100_000})
            # Those of the connection are for all streams together.
            self.h2.increment_flow_control_window(1 << 20)
            self._flush()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _set(self, settings):
        self.h2.local_settings.update(settings)
        self.h2.local_settings.acknowledge()

    def _flush(self):
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def _read(self):
        try:
            while data := self.sock.recv(65536):
                with self.changed:
                    events = self.h2.receive_data(data)
                    for event in events:
                        self._take(event)
                    self._flush()
                    self.changed.notify_all()
            self.end = "an end of stream"
        except Exception as error:  # Whoever waits for a stream has to be told, whatever it is.
            self.end = repr(error)
        with self.changed:
            for stream in self.streams.values():
                stream.arrived.put((b"", 0))
            self.changed.notify_all()
        self.close()

    def _take(self, event):
        stream = self.streams.get(getattr(event, "stream_id", None))
        match event:
            case h2.events.SettingsAcknowledged():
                self.are_settings_known = True
            case h2.events.RequestReceived() if self._is_refused(event.stream_id):
                self.h2.reset_stream(event.stream_id, ErrorCodes.REFUSED_STREAM)
            case h2.events.RequestReceived():
                stream = self.streams[event.stream_id] = Stream(self, event.stream_id)
                stream.headers = dict(event.headers)
                self.open_most = max(self.open_most, self.h2.open_inbound_streams)
                threading.Thread(target=self.accept, args=(stream,), daemon=True).start()
            case h2.events.ResponseReceived():
                stream.headers = dict(event.headers)
            case h2.events.DataReceived():
                if stream is None:
                    # Of one that was refused.
                    pass
                elif event.data or event.flow_controlled_length:
                    stream.arrived.put((event.data, event.flow_controlled_length))
            case h2.events.StreamEnded():
                if stream:
                    stream.arrived.put((b"", 0))
            case h2.events.StreamReset():
                if stream:
                    stream.was_reset = event.error_code
                    stream.arrived.put((b"", 0))
            case h2.events.PingAckReceived():
                self.pongs.put(event.ping_data)
            case h2.events.ConnectionTerminated():
                self.end = f"GOAWAY with {event.error_code}"

    def _is_refused(self, number):
        """RFC 9113 section 6.8: what was on its way when we said goodbye is not looked at."""
        if self.streams_max and self.h2.open_inbound_streams > self.streams_max:
            if self.are_settings_known:
                self.too_many.append(number)
            return True
        if self.last_allowed is None or number <= self.last_allowed:
            return False
        if time.monotonic() - self.goodbye_at > GOODBYE_TIME:
            self.late.append(number)
        return True

    def request(self, headers):
        with self.changed:
            number = self.h2.get_next_available_stream_id()
            stream = self.streams[number] = Stream(self, number)
            self.h2.send_headers(number, headers)
            self._flush()
        return stream

    def respond(self, number, status):
        with self.changed:
            self.h2.send_headers(number, [(":status", str(status))], end_stream=status != 200)
            self._flush()

    def send(self, number, data):
        view = memoryview(data)
        with self.changed:
            while view:
                window = self.h2.local_flow_control_window(number)
                count = min(window, self.h2.max_outbound_frame_size, len(view))
                if count > 0:
                    self.h2.send_data(number, bytes(view[:count]))
                    self._flush()
                    view = view[count:]
                elif self.end or not self.changed.wait(TIMEOUT):
                    raise ProtocolError(f"no window for stream {number}; {self.end}")

    def give_back(self, number, count):
        with self.changed:
            if count and not self.end:
                try:
                    self.h2.acknowledge_received_data(count, number)
                    self._flush()
                except StreamClosedError:
                    pass

    def finish(self, number):
        with self.changed:
            try:
                self.h2.end_stream(number)
                self._flush()
            except StreamClosedError:
                pass

    def reset(self, number):
        with self.changed:
            try:
                self.h2.reset_stream(number, ErrorCodes.CANCEL)
                self._flush()
            except StreamClosedError:
                pass

    def ping(self):
        with self.changed:
            self.h2.ping(b"abcdefgh")
            self._flush()
        if self.pongs.get(timeout=TIMEOUT) != b"abcdefgh":
            raise ProtocolError("another answer to a ping")

    def say_goodbye(self):
        """GOAWAY; streams that are open go on, which h2's own way to say it does not allow."""
        with self.changed:
            last = max(self.streams)
            frame = GoAwayFrame(0, last_stream_id=last, error_code=0)
            self.last_allowed, self.goodbye_at = last, time.monotonic()
            self.sock.sendall(frame.serialize())

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class ClientPool:
    """How a client opens them: all on one connection."""

    def __init__(self, address, session, tickets, context):
        self.tickets = tickets
        context.set_alpn_protocols(["h2"])
        sock = socket.create_connection(address, TIMEOUT)
        sock = context.wrap_socket(sock, server_hostname=address[0])
        if sock.selected_alpn_protocol() != "h2":
            raise ProtocolError("the server has not chosen h2")
        self.certificate = sock.getpeercert(binary_form=True)
        self.link = Link(plain_end(sock), is_client=True)

    def open(self):
        """The id of a new pool connection, and that."""
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":authority", "none"),
            (":path", "/stream"),
        ]
        if self.tickets:
            headers.append(("nodepass-ticket", self.tickets.issue()))
        stream = self.link.request(headers)
        stream.send(b"\0")
        data = b""
        while len(data) < 4:
            more = stream.receive()
            if not more:
                raise ProtocolError(f"no id: {stream.headers} {stream.was_reset} {self.link.end}")
            data += more
        if stream.headers[":status"] != "200":
            raise ProtocolError(f"another answer: {stream.headers}")
        stream.leftover = data[4:]
        return data[:4].hex(), stream


class ServerPool:
    """How a server takes them: on as many connections as the client opens."""

    def __init__(self, session, tickets, certificate_files, join, streams_max=None):
        self.tickets = tickets
        self.join = join
        self.streams_max = streams_max
        self.links = []
        self.context = server_context(*certificate_files)
        self.context.set_alpn_protocols(["h2"])

    def serve(self, sock):
        """One connection."""
        sock = self.context.wrap_socket(sock, server_side=True)
        if sock.selected_alpn_protocol() != "h2":
            raise ProtocolError("the client has not offered h2")
        self.links.append(Link(plain_end(sock), False, self.streams_max, self._accept))

    def _accept(self, stream):
        headers = stream.headers
        is_right = (headers[":method"], headers[":path"]) == ("POST", "/stream")
        if is_right and self.tickets:
            is_right = self.tickets.redeem(headers.get("nodepass-ticket"))
        elif "nodepass-ticket" in headers:
            is_right = False
        data = stream.receive()
        if not is_right or headers[":scheme"] != "https" or data[:1] != b"\0":
            stream.link.respond(stream.number, 403)
            raise ProtocolError(f"no request of the pool: {headers} {data!r}")
        stream.leftover = data[1:]

        def welcome(pool_id):
            stream.link.respond(stream.number, 200)
            stream.send(bytes.fromhex(pool_id))

        self.join(stream, welcome)
