"""A client of a tunnel: goes to a server and does what the server's flow asks for."""

import argparse

import http2
import quic
import web_socket
from roles import Peer, run, say
from tls import client_context
from wire import CONTROL, ProtocolError, Tickets, fingerprint, handshake

IDLE_COUNT = 4


def check_strangers(pool, tickets):
    """Whoever cannot say how a pool connection begins gets no answer."""
    starts = [(b"\2", False), (b"", True)]
    if tickets:
        used, good = (bytes.fromhex(tickets.encode(counter)) for counter in (1, 1000))
        forged = good[:-1] + bytes([good[-1] ^ 1])
        other = bytes([good[0] ^ 1]) + good[1:]
        starts += [(b"\1" + ticket, False) for ticket in (used, forged, other, bytes(40))]
        starts += [(b"\0", False), (b"\1", True), (b"\1" + good[:39], True)]
    else:
        starts += [(b"\1" + bytes(40), False)]
    for start, is_finished in starts:
        answer = pool.answer_to(start, is_finished)
        if answer:
            raise ProtocolError(f"{answer!r} is the answer to {start!r}")
    say("refused", count=len(starts))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--dialect", choices=["v1", "native"], required=True)
    scenes = ["plain", "move", "update-keys", "strangers"]
    parser.add_argument("--scene", choices=scenes, default="plain")
    options = parser.parse_args()
    host, port = options.server.rsplit(":", 1)
    address = host, int(port)
    session = handshake(address, options.key.encode(), options.dialect)
    tickets = Tickets(session) if session.is_native else None
    context = None
    if session.offer["tls"] != "0":
        context = client_context()
    transport = {"1": quic, "2": web_socket, "3": http2}[session.offer["type"]]
    pool = transport.ClientPool(address, session, tickets, context)
    pool_id, control = pool.open()
    assert pool_id == CONTROL, pool_id
    seen = fingerprint(pool.certificate) if pool.certificate else None
    if session.is_native and session.offer["tls"] == "1":
        assert session.offer["fp"] == seen, (session.offer, seen)
    peer = Peer(session, "c", seen)
    peer.add(pool_id, control)

    def fill(count):
        for _ in range(count):
            peer.add(*pool.open())

    def move():
        before = pool.port()
        pool.move()
        assert pool.port() != before
        say("moved", ports=[before, pool.port()])

    def update_keys():
        pool.update_keys()
        say("updated")

    in_the_middle = {"move": move, "update-keys": update_keys}.get(options.scene)
    peer.start()
    fill(IDLE_COUNT)
    peer.exchange_checks()
    say("up", offer={name: session.offer[name] for name in ("flow", "tls", "type")})
    if transport is quic:
        say("retried", count=pool.link.retries_count)
    if options.scene == "strangers":
        check_strangers(pool, tickets)
    if session.offer["flow"] == "-":
        for _ in range(3):
            peer.serve(in_the_middle)
            fill(1)
    else:
        peer.visit(1, in_the_middle)
        peer.send_datagram()
        fill(2)
        peer.visit(2, in_the_middle)
    peer.check_pings()
    if session.is_native:
        peer.send("bye")
    if transport is quic:
        # Nobody would notice before a timeout.
        pool.close()


run(main)
