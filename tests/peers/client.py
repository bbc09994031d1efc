"""A client of a tunnel: goes to a server and does what the server's flow asks for."""

import argparse

import http2
import web_socket
from roles import Peer, run, say
from tls import client_context
from wire import CONTROL, Tickets, fingerprint, handshake

IDLE_COUNT = 4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--dialect", choices=["v1", "native"], required=True)
    options = parser.parse_args()
    host, port = options.server.rsplit(":", 1)
    address = host, int(port)
    session = handshake(address, options.key.encode(), options.dialect)
    tickets = Tickets(session) if session.is_native else None
    context = None
    if session.offer["tls"] != "0":
        context = client_context()
    transport = {"2": web_socket, "3": http2}[session.offer["type"]]
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

    peer.start()
    fill(IDLE_COUNT)
    peer.exchange_checks()
    say("up", offer={name: session.offer[name] for name in ("flow", "tls", "type")})
    if session.offer["flow"] == "-":
        for _ in range(3):
            peer.serve()
            fill(1)
    else:
        peer.visit(1)
        peer.send_datagram()
        fill(2)
        peer.visit(2)
    peer.check_pings()
    if session.is_native:
        peer.send("bye")


run(main)
