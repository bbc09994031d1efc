"""Pool connections of WebSocket, by the library websockets."""

import socket
import threading
import types

from websockets.exceptions import ConnectionClosed
from websockets.server import ServerProtocol
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection

from tls import plain_end, server_context
from wire import TIMEOUT, ProtocolError

# No keep-alive of its own, no bound on messages: neither is part of the protocol.
OPTIONS = {"ping_interval": None, "close_timeout": TIMEOUT}


class Channel:
    """One pool connection."""

    is_broken = False

    def __init__(self, connection, is_native):
        self.connection = connection
        self.has_half_close = is_native
        self.is_over = False
        self.leftover = b""

    def send(self, data):
        self.connection.send(data)

    def receive(self):
        """Some bytes; none at the end of the other direction."""
        if self.leftover:
            data, self.leftover = self.leftover, b""
            return data
        while not self.is_over:
            try:
                message = self.connection.recv(timeout=TIMEOUT)
            except ConnectionClosed:
                break
            if not isinstance(message, bytes):
                raise ProtocolError(f"a text message: {message!r}")
            if message:
                return message
            if self.has_half_close:
                break
        self.is_over = True
        return b""

    def finish(self):
        """Ends our direction."""
        if self.has_half_close:
            self.connection.send(b"")
        else:
            self.close()

    def close(self):
        self.connection.close()

    def ping(self):
        """Waits for the answer to a ping."""
        if not self.connection.ping().wait(TIMEOUT):
            raise ProtocolError("a ping was not answered")


class ClientPool:
    """How a client opens them."""

    def __init__(self, address, session, tickets, context):
        self.address = address
        self.session = session
        self.tickets = tickets
        self.context = context
        self.certificate = None

    def open(self):
        """The id of a new pool connection, and that."""
        host, port = self.address
        sock = socket.create_connection(self.address, TIMEOUT)
        if self.context:
            sock = self.context.wrap_socket(sock, server_hostname=host)
            self.certificate = sock.getpeercert(binary_form=True)
            sock = plain_end(sock)
        headers = {}
        if self.tickets:
            headers["NodePass-Ticket"] = self.tickets.issue()
        connection = connect(
            f"ws://{host}:{port}/",
            sock=sock,
            compression=None,
            proxy=None,
            additional_headers=headers,
            open_timeout=TIMEOUT,
            max_size=None,
            **OPTIONS,
        )
        channel = Channel(connection, self.session.is_native)
        pool_id = channel.receive()
        if len(pool_id) < 4:
            raise ProtocolError(f"no id but {pool_id!r}")
        channel.leftover = pool_id[4:]
        return pool_id[:4].hex(), channel


class ServerPool:
    """How a server takes them."""

    def __init__(self, session, tickets, certificate_files, join):
        self.session = session
        self.tickets = tickets
        self.join = join
        self.context = server_context(*certificate_files) if certificate_files else None

    def serve(self, sock):
        """One connection, until it has become a pool connection or is refused."""
        if self.context:
            sock = plain_end(self.context.wrap_socket(sock, server_side=True))
        server = types.SimpleNamespace(socket_closed=threading.Event())
        protocol = ServerProtocol(max_size=None)
        connection = ServerConnection(sock, protocol, server, **OPTIONS)
        connection.handshake(self._look, timeout=TIMEOUT)
        if connection.response.status_code != 101:
            raise ProtocolError(f"refused: {connection.request}")
        channel = Channel(connection, self.session.is_native)
        self.join(channel, lambda pool_id: channel.send(bytes.fromhex(pool_id)))

    def _look(self, connection, request):
        if request.path != "/" or "Sec-WebSocket-Extensions" in request.headers:
            return connection.respond(400, "not as the protocol has it")
        if self.tickets and not self.tickets.redeem(request.headers.get("NodePass-Ticket")):
            return connection.respond(403, "no ticket")
        if not self.tickets and "NodePass-Ticket" in request.headers:
            return connection.respond(400, "a ticket in v1")
        return None
