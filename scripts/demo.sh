#!/bin/sh
# Shows that the program works: a web page is fetched through a tunnel, both ways round, and
# through the single-end forwarder.
#
#   scripts/demo.sh path/to/nodepass
#
# All on this machine, on free ports. Ends everything it started; status 1 if a page did not come
# through.
set -eu

nodepass=${1:-target/release/nodepass}
folder=$(mktemp -d)
web_pid=
nodepass_pids=

# The web server is the last to go, so that no target goes missing before its visitors do.
end_nodepass() {
    for pid in $nodepass_pids; do
        # One that has ended by itself is no error.
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    nodepass_pids=
}

clean_up() {
    end_nodepass
    if [ -n "$web_pid" ]; then
        kill "$web_pid" 2>/dev/null || true
        wait "$web_pid" 2>/dev/null || true
    fi
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

fail() {
    echo "demo failed: $1" >&2
    for log in "$folder"/*.log; do
        echo "--- $(basename "$log")" >&2
        cat "$log" >&2
    done
    exit 1
}

# wait_for LOG PATTERN PID: prints what \(…\) in the pattern matches, once the log has it.
wait_for() {
    attempts=100
    while [ "$attempts" -gt 0 ]; do
        found=$(sed -n "s/.*$2.*/\1/p" "$1" | head -n 1)
        if [ -n "$found" ]; then
            echo "$found"
            return
        fi
        kill -0 "$3" 2>/dev/null || return 1
        sleep 0.1
        attempts=$((attempts - 1))
    done
    return 1
}

# start NAME URL: runs nodepass with its log in NAME.log, and leaves its process id in `pid`.
start() {
    "$nodepass" "$2" >"$folder/$1.log" 2>&1 &
    pid=$!
    nodepass_pids="$nodepass_pids $pid"
}

# address_of NAME WORDS: the address that NAME's log tells after these words.
address_of() {
    wait_for "$folder/$1.log" "$2 \([0-9.:]*\)" "$pid" ||
        fail "$1 did not say: $2"
}

# fetch ADDRESS: gets the page from there and compares it with the one that is served.
fetch() {
    curl --silent --show-error --fail --noproxy '*' --max-time 10 \
        --output "$folder/fetched.html" "http://$1/" 2>"$folder/curl.log" ||
        fail 'the page did not come through'
    cmp -s "$folder/fetched.html" "$folder/pages/index.html" ||
        fail 'the page that came through is not the one that was served'
    echo "    curl http://$1/ got: $(cat "$folder/fetched.html")"
    end_nodepass
}

mkdir "$folder/pages"
echo "Hello from behind nodepass, $(date)." >"$folder/pages/index.html"
python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$folder/pages" \
    >"$folder/web.log" 2>&1 &
web_pid=$!
web_port=$(wait_for "$folder/web.log" ' port \([0-9]*\)' "$web_pid") ||
    fail 'the web server did not start'

cat <<END

A web server serves a page on 127.0.0.1:$web_port. By hand, in a terminal of its own:
    python3 -m http.server 8080 --bind 127.0.0.1

1. Tunnel, reverse: the web server is behind NAT, visitors come to the server outside.
   The client beside the web server dials out; TLS with a certificate made at start.
END
start server 'server://secret@127.0.0.1:0/127.0.0.1:0?mode=1&tls=1'
tunnel=$(address_of server 'Tunnel listening on tcp')
entry=$(address_of server 'Listening on tcp')
start client "client://secret@$tunnel/127.0.0.1:$web_port?mode=2"
fetch "$entry"
cat <<END
   By hand, in two terminals, and then: curl http://127.0.0.1:10080/
    $nodepass 'server://secret@127.0.0.1:10101/127.0.0.1:10080?mode=1&tls=1'
    $nodepass 'client://secret@127.0.0.1:10101/127.0.0.1:8080?mode=2'

2. Tunnel, forward: visitors come to the client, the web server is beside the server.
END
start server "server://secret@127.0.0.1:0/127.0.0.1:$web_port?mode=2&tls=1"
tunnel=$(address_of server 'Tunnel listening on tcp')
start client "client://secret@$tunnel/127.0.0.1:0?mode=2"
entry=$(address_of client 'Listening on tcp')
fetch "$entry"
cat <<END
   By hand, in two terminals, and then: curl http://127.0.0.1:10080/
    $nodepass 'server://secret@127.0.0.1:10101/127.0.0.1:8080?mode=2&tls=1'
    $nodepass 'client://secret@127.0.0.1:10101/127.0.0.1:10080?mode=2'

3. Forwarder on its own, no other end and no encryption.
END
start forwarder "client://127.0.0.1:0/127.0.0.1:$web_port?mode=1"
entry=$(address_of forwarder 'Listening on tcp')
fetch "$entry"
cat <<END
   By hand, in one terminal, and then: curl http://127.0.0.1:10080/
    $nodepass 'client://127.0.0.1:10080/127.0.0.1:8080?mode=1'

All three pages came through.
END
