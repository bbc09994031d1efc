#!/bin/sh
# Shows that the program works: a web page is fetched through it.
#
#   scripts/demo.sh path/to/nodepass
#
# All on this machine, on free ports. Ends everything it started; status 1 if the page did not
# come through.
set -eu

nodepass=${1:-target/release/nodepass}
folder=$(mktemp -d)
web_pid=
nodepass_pid=

clean_up() {
    for pid in $nodepass_pid $web_pid; do
        # One that has ended by itself is no error.
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
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

mkdir "$folder/pages"
echo "Hello from behind nodepass, $(date)." >"$folder/pages/index.html"
python3 -u -m http.server 0 --bind 127.0.0.1 --directory "$folder/pages" \
    >"$folder/web.log" 2>&1 &
web_pid=$!
web_port=$(wait_for "$folder/web.log" ' port \([0-9]*\)' "$web_pid") ||
    fail 'the web server did not start'

url="client://127.0.0.1:0/127.0.0.1:$web_port?mode=1"
"$nodepass" "$url" >"$folder/nodepass.log" 2>&1 &
nodepass_pid=$!
address=$(wait_for "$folder/nodepass.log" 'Listening on tcp \([0-9.:]*\)' "$nodepass_pid") ||
    fail 'nodepass did not start to listen'

curl --silent --show-error --fail --noproxy '*' --max-time 10 \
    --output "$folder/fetched.html" "http://$address/" 2>"$folder/curl.log" ||
    fail 'the page did not come through'
cmp -s "$folder/fetched.html" "$folder/pages/index.html" ||
    fail 'the page that came through is not the one that was served'

cat <<END

It works. A web server on 127.0.0.1:$web_port served a page,
    nodepass '$url'
listened on $address, and curl fetched the page through it:
    $(cat "$folder/fetched.html")

By hand, in three terminals:
    python3 -m http.server 8080 --bind 127.0.0.1
    $nodepass 'client://127.0.0.1:10101/127.0.0.1:8080?mode=1'
    curl http://127.0.0.1:10101/
END
