#!/bin/sh
# Shows that a static program needs nothing: alone in an empty root, it resolves names with the
# resolver of the system and with its own, forwards, verifies a certificate, and does what else its
# features are for.
#
#   scripts/alone.sh path/to/static/nodepass
#
# In a network and a root of its own, so that it takes neither ports nor names of this machine.
# Takes root, or a system that lets users have user namespaces. A program for another processor
# takes a system that knows an emulator for it, such as qemu-user-static with binfmt-support.
set -eu

if [ "${2:-}" != inside ]; then
    if [ "$(id -u)" -eq 0 ]; then
        exec unshare --net "$0" "$1" inside
    fi
    exec unshare --map-root-user --net "$0" "$1" inside
fi

version=$("$1" --version) || {
    echo "alone: $1 does not run here" >&2
    exit 1
}
echo "alone: $version"
folder=$(mktemp -d)
pids=

clean_up() {
    for pid in $pids; do
        kill "$pid" 2>/dev/null || true
    done
    wait
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

fail() {
    echo "alone: $1" >&2
    cat "$folder"/*.log >&2
    exit 1
}

# wait_for LOG WORDS: until the log has them.
wait_for() {
    attempts=200
    until grep -qs "$2" "$folder/$1.log"; do
        attempts=$((attempts - 1))
        [ "$attempts" -gt 0 ] || fail "$1 did not say: $2"
        sleep 0.1
    done
}

# start NAME ROOT URL: in that root, until it listens or has a session.
start() {
    chroot "$2" /nodepass "$3" >"$folder/$1.log" 2>&1 &
    pids="$pids $!"
    wait_for "$1" 'istening on tcp\|is up'
}

# fetch PORT WHAT: over TCP and over UDP.
fetch() {
    page=$(curl --silent --show-error --fail --noproxy '*' --max-time 20 "http://127.0.0.1:$1/") ||
        fail "no page: $2"
    [ "$page" = 'Hello from outside.' ] || fail "another page: $2"
    echo "$datagram" | python3 - "$1" || fail "no datagram came back: $2"
    echo "alone: $2"
}

# Sends one of the largest that an address of the internet lets through, and wants it back.
datagram='
import os, socket, sys

sent = os.urandom(1400)
visitor = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
visitor.settimeout(20)
visitor.connect(("127.0.0.1", int(sys.argv[1])))
visitor.send(sent)
sys.exit(visitor.recv(65536) != sent)
'

# has FEATURE
has() {
    echo "$version" | grep -q "[ (]$1[,;]"
}

ip link set lo up

# The world outside: a page, an echo at the same port over UDP, and a name server that knows one name.
cat >"$folder/world.py" <<'END'
import http.server, socket, threading

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"Hello from outside.\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

def answer_names():
    while True:
        query, sender = names.recvfrom(512)
        # Behind 12 bytes of header: the name, its type and its class.
        end = query.index(b"\0", 12)
        name, kind = query[12:end], query[end + 1 : end + 3]
        found = kind == b"\0\1" and name == b"\3web\4test"
        head = query[:2] + b"\x85\x80" + b"\0\1" + bytes([0, found]) + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if found else b""
        names.sendto(head + query[12 : end + 5] + record, sender)

def echo():
    while True:
        datagram, sender = datagrams.recvfrom(65536)
        datagrams.sendto(datagram, sender)

names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 53))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 8080))
threading.Thread(target=answer_names, daemon=True).start()
threading.Thread(target=echo, daemon=True).start()
page = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Page)
print("ready", flush=True)
page.serve_forever()
END
python3 "$folder/world.py" >"$folder/world.log" 2>&1 &
pids=$!
wait_for world ready

# One root has the program and nothing else, the other one what a system would tell it.
mkdir -p "$folder/empty" "$folder/told/etc"
cp "$1" "$folder/empty/nodepass"
cp "$1" "$folder/told/nodepass"
echo 'nameserver 127.0.0.1' >"$folder/told/etc/resolv.conf"

start own "$folder/empty" 'client://127.0.0.1:10001/web.test:8080?mode=1&dns=127.0.0.1'
fetch 10001 'an empty root, name servers from the URL'

start system "$folder/told" 'client://127.0.0.1:10002/web.test:8080?mode=1'
fetch 10002 'the resolver of the system'

# tunnel PORT NAME OPTIONS: visitors of PORT + 1 come to the target.
tunnel() {
    start "$2-server" "$folder/empty" \
        "server://key@127.0.0.1:$1/127.0.0.1:$(($1 + 1))?mode=1&auth=1&$3"
    start "$2-client" "$folder/told" "client://key@web.test:$1/web.test:8080?mode=2&auth=1&min=8"
    fetch "$(($1 + 1))" "a tunnel with $3"
}

tunnel 10110 plain 'tls=0'
if has tls; then
    tunnel 10120 own-certificate 'tls=1'
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=web.test \
        -addext subjectAltName=DNS:web.test -addext basicConstraints=critical,CA:FALSE \
        -keyout "$folder/empty/key.pem" -out "$folder/empty/crt.pem" 2>"$folder/openssl.log"
    cp "$folder/empty/crt.pem" "$folder/told/trusted.pem"
    export SSL_CERT_FILE=/trusted.pem
    tunnel 10130 verified 'tls=2&crt=/crt.pem&key=/key.pem'
fi
if has quic; then
    tunnel 10140 quic 'tls=1&type=1'
fi
if has websocket; then
    tunnel 10150 websocket 'type=2'
fi
if has http2; then
    tunnel 10160 http2 'tls=1&type=3'
fi

# A master finds its own program, and starts it.
if has master; then
    mkdir "$folder/empty/state"
    export NP_STATE_DIR=/state
    start master "$folder/empty" 'master://127.0.0.1:9090'
    wait_for master 'API key'
    key=$(sed 's/.*"url":"\([0-9a-f]\{32\}\)".*/\1/' "$folder/empty/state/nodepass.json")
    curl --silent --show-error --fail-with-body --noproxy "*" --max-time 20 --header "X-API-Key: $key" \
        --data '{"url":"client://127.0.0.1:10170/127.0.0.1:8080?mode=1"}' \
        http://127.0.0.1:9090/api/v1/instances >>"$folder/curl.log" || fail 'the master makes no instance'
    wait_for master 'istening on tcp 127.0.0.1:10170'
    fetch 10170 'an instance of a master'
fi
