"""A server of a tunnel: waits for a client and does what its scene asks for."""

import argparse
import errno
import secrets
import socket
import ssl
import threading

import http2
import quic
import web_socket
from roles import Peer, run, say
from wire import CONTROL, TIMEOUT, Doorman, ProtocolError, Tickets, fingerprint, read_head

TLS_HANDSHAKE = 0x16


class Server:
    """One listener, one session."""

    def __init__(self, options):
        self.options = options
        self.offer = {
            "flow": options.flow,
            "max": 64,
            "tls": options.tls,
            "type": options.type,
        }
        self.files = (options.crt, options.crt_key) if options.tls != "0" else None
        self.fingerprint = None
        if self.files:
            with open(options.crt, encoding="ascii") as file:
                pem = file.read().split("-----END CERTIFICATE-----")[0]
            certificate = ssl.PEM_cert_to_DER_cert(pem + "-----END CERTIFICATE-----\n")
            self.fingerprint = fingerprint(certificate)
        if options.dialect == "native" and options.tls == "1":
            self.offer["fp"] = self.fingerprint
        self.doorman = Doorman(options.key.encode(), options.dialect, self.offer)
        self.peer = None
        self.pool = None
        self.is_first = True
        self.ready = threading.Event()
        self.lock = threading.Lock()
        self.endpoint = None
        self.listener = self._listen()
        say("listening", port=self.listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _listen(self):
        """The port is one that is free for both protocols where both are needed."""
        while True:
            listener = socket.create_server(("127.0.0.1", 0))
            if self.options.type != "1":
                return listener
            try:
                port = listener.getsockname()[1]
                self.endpoint = quic.Endpoint(port, self.files, self.options.retry)
                return listener
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                listener.close()

    def _accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        try:
            sock.settimeout(TIMEOUT)
            first = sock.recv(4, socket.MSG_PEEK)
            is_for_pool = first[:1] == bytes([TLS_HANDSHAKE]) or first and self._is_upgrade(sock)
            if is_for_pool and self.endpoint:
                raise ProtocolError(f"a pool connection over TCP: {first}")
            if is_for_pool:
                self.pool.serve(sock)
            elif first:
                with sock:
                    self._shake_hands(sock)
        except (OSError, ProtocolError) as error:
            # One connection less; what is missed by it shows elsewhere.
            say("lost", why=repr(error))

    @staticmethod
    def _is_upgrade(sock):
        while True:
            seen = sock.recv(16384, socket.MSG_PEEK)
            if b"\r\n\r\n" in seen or not seen:
                return b"\r\nupgrade: websocket" in seen.lower()

    def _shake_hands(self, sock):
        start, headers, _ = read_head(sock)
        if start != "GET / HTTP/1.1":
            raise ProtocolError(f"no handshake: {start}")
        if self.options.dialect == "v1" and "nodepass-version" in headers:
            sock.sendall(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n")
            return
        answer, session = self.doorman.answer(headers)
        if session:
            self._open(session)
        sock.sendall(answer)

    def _open(self, session):
        tickets = Tickets(session) if session.is_native else None
        self.peer = Peer(session, "s", self.fingerprint)
        self.is_first = True
        if self.options.type == "1":
            self.pool = quic.ServerPool(tickets, self.endpoint, self._join)
        elif self.options.type == "2":
            self.pool = web_socket.ServerPool(session, tickets, self.files, self._join)
        else:
            most = self.options.streams_max
            self.pool = http2.ServerPool(session, tickets, self.files, self._join, most)
        self.ready.set()

    def _join(self, channel, welcome):
        with self.lock:
            pool_id = CONTROL if self.is_first else secrets.token_hex(4)
            self.is_first = False
        welcome(pool_id)
        self.peer.add(pool_id, channel)

    def wait(self):
        """Until a client has joined."""
        if not self.ready.wait(TIMEOUT):
            raise ProtocolError("no client")
        self.peer.start()
        self.peer.wait("two idle pool connections", lambda: len(self.peer.idle) >= 2)
        self.peer.exchange_checks()
        say("up")
        return self.peer


# Scenes.


def plain(server, peer):
    """Visitors of both protocols, and pings."""
    if server.options.flow == "-":
        peer.visit(1)
        peer.send_datagram()
        peer.visit(2)
    else:
        for _ in range(3):
            peer.serve()
    peer.check_pings()


def goodbye(server, peer):
    """GOAWAY while visitors are served: they finish, others come by another connection."""
    barrier = threading.Barrier(6, timeout=TIMEOUT)
    failures = []

    def visit(seed):
        try:
            peer.visit(seed, lambda: (barrier.wait(), barrier.wait()))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=visit, args=(seed,)) for seed in range(1, 6)]
    for thread in threads:
        thread.start()
    barrier.wait()
    first = server.pool.links[0]
    first.say_goodbye()
    say("goodbye", last=first.last_allowed)
    barrier.wait()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    peer.wait("a second connection", lambda: len(server.pool.links) >= 2)
    # More than the old connection had ready.
    for seed in range(10, 30):
        peer.visit(seed)
    if first.late:
        raise ProtocolError(f"new streams after the goodbye: {first.late}")
    if peer.failure:
        raise ProtocolError(peer.failure)


def few_streams(server, peer):
    """As many streams on a connection as it may have, and more connections."""
    most = server.options.streams_max
    peer.wait("a full pool", lambda: len(peer.idle) >= 32)
    for seed in range(1, 20):
        peer.visit(seed)
    links = server.pool.links
    counts = [link.open_most for link in links]
    too_many = [number for link in links for number in link.too_many]
    say("links", open_most=counts, too_many=too_many)
    if len(links) < 4 or max(counts) > most or too_many:
        raise ProtocolError(f"streams of the connections: {counts}")


def resets(server, peer):
    """Streams that are reset, idle and busy, cost nobody else anything."""
    failures = []

    def visit(seed):
        try:
            peer.visit(seed)
        except Exception as error:
            failures.append(error)

    for seed in range(1, 11):
        thread = threading.Thread(target=visit, args=(seed,))
        thread.start()
        pool_id, channel = peer.take_any()
        if seed % 2:
            peer.send("tcp", remote="203.0.113.7:1", id=pool_id)
            channel.send(b"\0\0\0\0")
        channel.reset()
        thread.join()
    if failures:
        raise failures[0]
    peer.visit(11)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", required=True)
    parser.add_argument("--dialect", choices=["v1", "native"], required=True)
    parser.add_argument("--type", choices=["1", "2", "3"], required=True)
    parser.add_argument("--flow", choices=["-", "+"], required=True)
    parser.add_argument("--tls", choices=["0", "1"], required=True)
    parser.add_argument("--crt", help="the certificate, PEM")
    parser.add_argument("--crt-key", help="its key, PEM")
    parser.add_argument("--scene", default="plain")
    parser.add_argument("--streams-max", type=int)
    parser.add_argument("--retry", action="store_true", help="ask clients for a token first")
    options = parser.parse_args()
    server = Server(options)
    peer = server.wait()
    scenes = {"plain": plain, "goodbye": goodbye, "few-streams": few_streams, "resets": resets}
    scenes[options.scene](server, peer)


run(main)
