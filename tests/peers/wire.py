"""The protocol between server and client, written from its description alone.

Sections are those of the wire protocol: 3 the handshake, 5 and 8 the control channel.
"""

import base64
import hashlib
import hmac
import json
import secrets
import socket
import struct

TIMEOUT = 20.0
CONTROL = "00000000"


class ProtocolError(Exception):
    """The other side has not kept to the protocol."""


def authenticate(key, label, *parts):
    """H of section 8."""
    return hmac.new(key, label.encode() + b"\0" + b"".join(parts), hashlib.sha256).digest()


def fingerprint(certificate):
    """Of a certificate in DER, as signals and answers name it."""
    digest = hashlib.sha256(certificate).hexdigest().upper()
    return "sha256:" + ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))


class Session:
    """What both sides know once the handshake is done; `key` is the session's in native."""

    def __init__(self, offer, key, session=None):
        self.offer = offer
        self.key = key
        self.session = session

    @property
    def is_native(self):
        return self.session is not None


# Tickets.


class Tickets:
    """Those of one session: issued by the client, redeemed by the server."""

    def __init__(self, session):
        self.session = session
        self.count = 0
        self.used = set()

    def encode(self, counter):
        """That of a counter, whether it was issued or not."""
        raw = struct.pack(">Q", counter)
        proof = authenticate(self.session.key, "nodepass pool", raw)[:16]
        return (self.session.session + raw + proof).hex()

    def issue(self):
        self.count += 1
        return self.encode(self.count)

    def redeem(self, text):
        """Whether a ticket is good; it is so once."""
        if len(text or "") != 80 or text in self.used:
            return False
        counter = struct.unpack(">Q", bytes.fromhex(text)[16:24])[0]
        self.used.add(text)
        return hmac.compare_digest(text, self.encode(counter))


# HTTP of the handshake.


def read_head(sock, rest=b""):
    """The start line and the headers, in lower case, of one message; and what follows."""
    data = rest
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            raise ProtocolError("no HTTP but an end")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    start, *lines = head.decode().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return start, headers, rest


def ask(address, headers):
    """One request on a connection of its own: status, headers and body of the answer."""
    with socket.create_connection(address, TIMEOUT) as sock:
        lines = ["GET / HTTP/1.1", "Host: none", *(f"{k}: {v}" for k, v in headers.items())]
        sock.sendall("\r\n".join([*lines, "", ""]).encode())
        start, answer, body = read_head(sock)
        size = int(answer.get("content-length", 0))
        while len(body) < size:
            more = sock.recv(4096)
            if not more:
                raise ProtocolError("half a body")
            body += more
        return int(start.split()[1]), answer, body[:size]


def handshake(address, key, dialect):
    """That of a client."""
    if dialect == "v1":
        token = hmac.new(key, b"", hashlib.sha256).hexdigest()
        status, _, body = ask(address, {"Authorization": f"Bearer {token}"})
        if status != 200:
            raise ProtocolError(f"status {status} for the right token")
        return Session(json.loads(body), key)
    nonce = secrets.token_bytes(32)
    hello = {"NodePass-Version": "1", "NodePass-Nonce": nonce.hex()}
    status, answer, _ = ask(address, hello)
    if status != 401 or answer.get("nodepass-version") != "1":
        raise ProtocolError(f"status {status} and {answer} for a hello")
    theirs = bytes.fromhex(answer["nodepass-nonce"])
    hello["NodePass-Challenge"] = theirs.hex()
    hello["NodePass-Proof"] = authenticate(key, "nodepass client", nonce, theirs).hex()
    status, answer, body = ask(address, hello)
    if status != 200:
        raise ProtocolError(f"status {status} for the right proof")
    proof = authenticate(key, "nodepass server", nonce, theirs, body).hex()
    if not hmac.compare_digest(proof, answer["nodepass-proof"]):
        raise ProtocolError("the server does not know the key")
    offer = json.loads(body)
    session = bytes.fromhex(offer["session"])
    return Session(offer, authenticate(key, "nodepass session", nonce, theirs, session), session)


class Doorman:
    """The handshake of a server."""

    def __init__(self, key, dialect, offer):
        self.key = key
        self.dialect = dialect
        self.offer = offer
        self.nonces = {}

    def answer(self, headers):
        """The answer to a request, and the session where it begins one."""
        if self.dialect == "v1":
            token = hmac.new(self.key, b"", hashlib.sha256).hexdigest()
            if headers.get("authorization") != f"Bearer {token}":
                return self._response(401, {}, b"Unauthorized\n"), None
            return self._response(200, {}, self._body(self.offer)), Session(self.offer, self.key)
        nonce = bytes.fromhex(headers["nodepass-nonce"])
        if headers.get("nodepass-version") != "1" or len(nonce) != 32:
            raise ProtocolError(f"no hello: {headers}")
        if "nodepass-proof" not in headers:
            if "authorization" in headers:
                raise ProtocolError("a token in a native hello")
            ours = self.nonces[nonce] = secrets.token_bytes(32)
            more = {"NodePass-Version": "1", "NodePass-Nonce": ours.hex()}
            return self._response(401, more, b""), None
        ours = self.nonces.pop(nonce)
        if headers.get("nodepass-challenge") != ours.hex():
            raise ProtocolError(f"another challenge than ours: {headers}")
        proof = authenticate(self.key, "nodepass client", nonce, ours).hex()
        if not hmac.compare_digest(proof, headers["nodepass-proof"]):
            raise ProtocolError("the client does not know the key")
        session = secrets.token_bytes(16)
        body = self._body({**self.offer, "session": session.hex()})
        proof = authenticate(self.key, "nodepass server", nonce, ours, body).hex()
        key = authenticate(self.key, "nodepass session", nonce, ours, session)
        answer = self._response(200, {"NodePass-Proof": proof}, body)
        return answer, Session(self.offer, key, session)

    @staticmethod
    def _body(offer):
        return json.dumps(offer, separators=(",", ":")).encode() + b"\n"

    @staticmethod
    def _response(status, more, body):
        reason = {200: "OK", 401: "Unauthorized"}[status]
        lines = [f"HTTP/1.1 {status} {reason}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in more.items()]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
        return "\r\n".join(lines).encode() + body


# The control channel.


class Lines:
    """Signals as lines, in the dialect of a session; `side` is `c` or `s`."""

    def __init__(self, session, side):
        self.session = session
        self.ours = side
        self.theirs = "s" if side == "c" else "c"
        self.sent = 0
        self.read = 0
        self.buffer = b""

    def encode(self, signal):
        text = json.dumps(signal, separators=(",", ":")).encode()
        if not self.session.is_native:
            return base64.b64encode(self._xor(text)) + b"\n"
        mac = self._mac(self.ours, self.sent, text)
        self.sent += 1
        return base64.b64encode(text) + b"." + mac + b"\n"

    def feed(self, data):
        """The signals that are whole now."""
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        return [self._decode(line) for line in lines]

    def _decode(self, line):
        if not self.session.is_native:
            return json.loads(self._xor(base64.b64decode(line, validate=True)))
        encoded, _, mac = line.partition(b".")
        text = base64.b64decode(encoded, validate=True)
        if not hmac.compare_digest(mac, self._mac(self.theirs, self.read, text)):
            raise ProtocolError(f"a forged line: {line}")
        self.read += 1
        return json.loads(text)

    def _mac(self, direction, sequence, text):
        parts = direction.encode(), struct.pack(">Q", sequence), text
        return authenticate(self.session.key, "nodepass signal", *parts)[:16].hex().encode()

    def _xor(self, text):
        key = self.session.key
        return bytes(byte ^ key[i % len(key)] for i, byte in enumerate(text))
