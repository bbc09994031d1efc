"""Pool connections of QUIC, by the library aioquic."""

import asyncio
import queue
import ssl
import threading

from aioquic.asyncio import serve
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.serialization import Encoding

from wire import TIMEOUT, ProtocolError

ALPN = "np-quic"

# How a stream begins: in v1 with nothing else, in native with a ticket after it.
V1_START = b"\0"
NATIVE_START = b"\1"
TICKET_SIZE = 40

# Small, so that windows have to be given back at least at first: the library widens them.
WINDOW_SIZE = 20_000

# Any will do: the protocol gives the codes of resets and ends no meaning.
RESET_CODE = 0


class Loop:
    """Where the library runs: its objects belong to one thread."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, work):
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(TIMEOUT)


class Stream:
    """One pool connection."""

    has_half_close = True

    def __init__(self, link, number):
        self.link = link
        self.number = number
        self.arrived = queue.Queue()
        self.is_finished = False
        self.is_over = False
        self.is_broken = False
        self.leftover = b""

    def send(self, data):
        self.link.do(lambda: self.link.quic.send_stream_data(self.number, data))

    def receive(self):
        """Some bytes; none at the end of the other direction."""
        if self.leftover:
            data, self.leftover = self.leftover, b""
            return data
        if self.is_over:
            return b""
        data = self.arrived.get(timeout=TIMEOUT)
        self.is_over = not data
        return data

    def finish(self):
        """Ends our direction, if it has not ended."""
        self.link.do(self._finish)

    def _finish(self):
        if not self.is_finished and not self.is_broken:
            self.is_finished = True
            self.link.quic.send_stream_data(self.number, b"", True)

    def close(self):
        """As programs of v1 do it, whether the connection was in use or not."""
        self.finish()

    def reset(self):
        """Breaks off both directions."""
        self.link.do(lambda: self.link.reset(self.number))

    def ping(self):
        """Waits for the answer to a ping."""
        self.link.say_ping()


class Link(QuicConnectionProtocol):
    """One connection; its streams are used from other threads than it."""

    def __init__(self, loop, quic, accept=None):
        super().__init__(quic)
        self.loop = loop
        self.quic = quic
        self.accept = accept
        self.streams = {}
        self.end = None
        self.alpn = None
        self.retries_count = 0
        self.transport = None

    def connection_made(self, transport):
        super().connection_made(transport)
        self.transport = transport

    # From other threads.

    def do(self, work):
        """Something to the connection, and sends what follows from it."""

        async def task():
            if self.end:
                raise ProtocolError(f"the connection is over: {self.end}")
            result = work()
            self.transmit()
            return result

        return self.loop.run(task())

    def open(self):
        return self.do(self._open)

    def say_ping(self):
        self.loop.run(self.ping())

    def leave(self):
        """Ends the connection, if the other side has not."""

        async def task():
            self.close()

        self.loop.run(task())

    # From the thread of the library.

    def _open(self):
        number = self.quic.get_next_available_stream_id()
        stream = self.streams[number] = Stream(self, number)
        # The library counts it only once something was said on it.
        self.quic.send_stream_data(number, b"")
        return stream

    def reset(self, number):
        self.quic.reset_stream(number, RESET_CODE)
        self.quic.stop_stream(number, RESET_CODE)

    def datagram_received(self, data, addr):
        # RFC 9000 section 17.2: a long header, whose type is Retry.
        self.retries_count += data[0] & 0xF0 == 0xF0
        super().datagram_received(data, addr)

    def quic_event_received(self, event):
        match event:
            case events.ProtocolNegotiated():
                self.alpn = event.alpn_protocol
            case events.StreamDataReceived():
                stream = self._stream(event.stream_id)
                if stream and event.data:
                    stream.arrived.put(event.data)
                if stream and event.end_stream:
                    stream.arrived.put(b"")
            case events.StreamReset():
                if stream := self._stream(event.stream_id):
                    stream.is_broken = True
                    stream.arrived.put(b"")
            case events.StopSendingReceived():
                if stream := self._stream(event.stream_id):
                    stream.is_broken = True
            case events.ConnectionTerminated():
                self.end = f"{event.error_code:#x} {event.reason_phrase!r}"
                for stream in self.streams.values():
                    stream.arrived.put(b"")

    def _stream(self, number):
        """That of an event; a new one of the other side is begun."""
        stream = self.streams.get(number)
        # The lowest bits tell who has begun it, and whether it goes both ways.
        if stream is None and self.accept and number % 4 == 0:
            stream = self.streams[number] = Stream(self, number)
            threading.Thread(target=self.accept, args=(stream,), daemon=True).start()
        return stream


class ClientPool:
    """How a client opens them: all on one connection."""

    def __init__(self, address, session, tickets, _context):
        self.address = address
        self.tickets = tickets
        self.loop = Loop()
        self.link = self.loop.run(self._connect())
        if self.link.alpn != ALPN:
            raise ProtocolError(f"the server has chosen {self.link.alpn}")
        # The library verifies certificates, but shows them to nobody.
        certificate = self.link.quic.tls._peer_certificate
        self.certificate = certificate.public_bytes(Encoding.DER)

    async def _connect(self):
        configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            max_data=2 * WINDOW_SIZE,
            max_stream_data=WINDOW_SIZE,
            server_name=self.address[0],
            # Takes every certificate: what it is compared with comes from elsewhere.
            verify_mode=ssl.CERT_NONE,
        )
        link = Link(self.loop, QuicConnection(configuration=configuration))
        await self._bind(link)
        link.connect(self.address)
        await asyncio.wait_for(link.wait_connected(), TIMEOUT)
        return link

    async def _bind(self, link):
        """Gives a connection a socket, and with that a port."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: link, local_addr=("127.0.0.1", 0))

    def port(self):
        return self.link.transport.get_extra_info("sockname")[1]

    def move(self):
        """Goes on from another port, as if there were a NAT that has forgotten the old one."""

        async def task():
            old = self.link.transport
            await self._bind(self.link)
            old.close()

        self.loop.run(task())

    def update_keys(self):
        """RFC 9001 section 6."""
        self.link.do(self.link.request_key_update)

    def answer_to(self, start, is_finished):
        """What the server says to the start of a stream, on a connection of its own."""
        link = self.loop.run(self._connect())
        stream = link.open()
        stream.send(start)
        if is_finished:
            stream.finish()
        answer = stream.receive()
        link.leave()
        return answer

    def open(self):
        """The id of a new pool connection, and that."""
        stream = self.link.open()
        if self.tickets:
            stream.send(NATIVE_START + bytes.fromhex(self.tickets.issue()))
        else:
            stream.send(V1_START)
        data = b""
        while len(data) < 4:
            more = stream.receive()
            if not more:
                raise ProtocolError(f"no id: {stream.is_broken} {self.link.end}")
            data += more
        stream.leftover = data[4:]
        return data[:4].hex(), stream

    def close(self):
        """Says that it is over, which nobody would notice otherwise."""
        self.link.leave()


class Endpoint:
    """The socket of a server, at the port of the listener for TCP."""

    def __init__(self, port, certificate_files, is_retry_asked):
        self.loop = Loop()
        self.accept = None
        self.links = []
        self.configuration = QuicConfiguration(
            alpn_protocols=[ALPN],
            is_client=False,
            max_data=2 * WINDOW_SIZE,
            max_stream_data=WINDOW_SIZE,
        )
        self.configuration.load_cert_chain(*certificate_files)
        self.loop.run(self._serve(port, is_retry_asked))

    async def _serve(self, port, is_retry_asked):
        await serve(
            "127.0.0.1",
            port,
            configuration=self.configuration,
            create_protocol=self._take,
            retry=is_retry_asked,
        )

    def _take(self, quic, stream_handler=None):
        link = Link(self.loop, quic, self.accept)
        self.links.append(link)
        return link


class ServerPool:
    """How a server takes them."""

    def __init__(self, tickets, endpoint, join):
        self.tickets = tickets
        self.join = join
        self.links = endpoint.links
        endpoint.accept = self._accept

    def _accept(self, stream):
        data = stream.receive()
        start = NATIVE_START if self.tickets else V1_START
        size = 1 + TICKET_SIZE if self.tickets else 1
        while data[:1] == start and len(data) < size:
            more = stream.receive()
            if not more:
                break
            data += more
        is_right = data[:1] == start and len(data) >= size
        if is_right and self.tickets:
            is_right = self.tickets.redeem(data[1:size].hex())
        if not is_right:
            stream.reset()
            raise ProtocolError(f"no pool connection: {data!r}")
        stream.leftover = data[size:]
        self.join(stream, lambda pool_id: stream.send(bytes.fromhex(pool_id)))
