"""TLS that two threads may use at once, which the objects of the module ssl are not made for."""

import select
import socket
import ssl
import threading

CHUNK_SIZE = 65536
QUEUE_SIZE_MAX = 1 << 20


def client_context():
    """Takes every certificate: what it is compared with comes from elsewhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def server_context(certificate, key):
    """Serves that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


def plain_end(secure):
    """A socket of which the other end is what `secure` carries, moved by one thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    listener.close()
    for sock in near, far:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_move, args=(secure, far), daemon=True).start()
    return near


def _move(secure, plain):
    secure.setblocking(False)
    plain.setblocking(False)
    with secure, plain:
        try:
            _move_until_end(secure, plain)
        except OSError:
            # Broken off: both ends see that when they are closed here.
            pass


def _move_until_end(secure, plain):
    inward, outward = bytearray(), bytearray()
    ends = {"secure": False, "plain": False}
    while True:
        readers, writers = [], []
        if not ends["secure"] and len(inward) < QUEUE_SIZE_MAX:
            readers.append(secure)
        if not ends["plain"] and len(outward) < QUEUE_SIZE_MAX:
            readers.append(plain)
        if inward:
            writers.append(plain)
        if outward:
            writers.append(secure)
        if not readers and not writers:
            return
        timeout = 0 if secure.pending() else 1
        select.select(readers, writers, [], timeout)
        if secure in readers:
            try:
                data = secure.recv(CHUNK_SIZE)
                inward += data
                ends["secure"] = not data
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
        if plain in readers:
            try:
                data = plain.recv(CHUNK_SIZE)
                outward += data
                ends["plain"] = not data
            except BlockingIOError:
                pass
        if outward:
            try:
                del outward[: secure.send(bytes(outward))]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
        if inward:
            try:
                del inward[: plain.send(bytes(inward))]
            except BlockingIOError:
                pass
        if ends["plain"] and not outward:
            return
        if ends["secure"] and not inward:
            plain.shutdown(socket.SHUT_WR)
            return
