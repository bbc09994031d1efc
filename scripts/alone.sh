#!/bin/sh
# Shows that a static program needs nothing: alone in an empty root, it resolves names with the
# resolver of the system and with its own, forwards, and verifies a certificate.
#
#   scripts/alone.sh path/to/static/nodepass
#
# In a network and a root of its own, so that it takes neither ports nor names of this machine.
# Takes root, or a system that lets users have user namespaces.
set -eu

if [ "${2:-}" != inside ]; then
    if [ "$(id -u)" -eq 0 ]; then
        exec unshare --net "$0" "$1" inside
    fi
    exec unshare --map-root-user --net "$0" "$1" inside
fi

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

# fetch PORT WHAT
fetch() {
    page=$(curl --silent --show-error --fail --noproxy '*' --max-time 20 "http://127.0.0.1:$1/") ||
        fail "no page: $2"
    [ "$page" = 'Hello from outside.' ] || fail "another page: $2"
    echo "alone: $2"
}

ip link set lo up

# The world outside: a page, and a name server that knows one name.
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

names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("127.0.0.1", 53))
threading.Thread(target=answer_names, daemon=True).start()
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

start server "$folder/empty" 'server://key@127.0.0.1:10101/127.0.0.1:10003?mode=1&tls=1&auth=1'
start client "$folder/told" 'client://key@web.test:10101/web.test:8080?mode=2&auth=1'
fetch 10003 'a tunnel with tls=1'

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=web.test \
    -addext subjectAltName=DNS:web.test -addext basicConstraints=critical,CA:FALSE \
    -keyout "$folder/empty/key.pem" -out "$folder/empty/crt.pem" 2>"$folder/openssl.log"
cp "$folder/empty/crt.pem" "$folder/told/trusted.pem"
start verified-server "$folder/empty" \
    'server://key@127.0.0.1:10102/127.0.0.1:10004?mode=1&tls=2&crt=/crt.pem&key=/key.pem&auth=1'
export SSL_CERT_FILE=/trusted.pem
start verified-client "$folder/told" 'client://key@web.test:10102/web.test:8080?mode=2&auth=1'
fetch 10004 'a tunnel with tls=2, certificates from SSL_CERT_FILE'
