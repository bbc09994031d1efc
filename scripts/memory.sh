#!/bin/sh
# Measures what a server and its client take: idle, and with 200 visitors at once while each end has
# 32 MB and no more.
#
#   scripts/memory.sh path/to/nodepass
#
# The limit is a control group where this user may make one, else the size of the address space
# (`ulimit -v`), which counts more than is used. Status 1 if a visitor did not get back what he sent.
set -eu

program=${1:-target/release/nodepass}
size_max=$((32 * 1024 * 1024))
folder=$(mktemp -d)
pids=
groups=

clean_up() {
    for pid in $pids; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    for group in $groups; do
        rmdir "$group" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# wait_for LOG WORDS: the address behind these words, once the log has them.
wait_for() {
    attempts=100
    while [ "$attempts" -gt 0 ]; do
        found=$(sed -n "s/.*$2 \([0-9.:]*\).*/\1/p" "$folder/$1.log" 2>/dev/null | head -n 1)
        if [ -n "$found" ]; then
            echo "$found"
            return
        fi
        sleep 0.1
        attempts=$((attempts - 1))
    done
    cat "$folder/$1.log" >&2
    return 1
}

# group NAME: makes a control group with the limit, and leaves its folder in `group`, if it may.
group() {
    group=
    for parent in /sys/fs/cgroup/memory /sys/fs/cgroup; do
        if mkdir "$parent/nodepass-$$-$1" 2>/dev/null; then
            group=$parent/nodepass-$$-$1
            groups="$groups $group"
            for file in memory.limit_in_bytes memory.max; do
                if [ -e "$group/$file" ] && echo "$size_max" 2>/dev/null >"$group/$file"; then
                    return
                fi
            done
            group=
        fi
    done
}

# start NAME LIMITED URL: runs the program with its log in NAME.log; leaves its process id in `pid`.
start() {
    group=
    if [ "$2" = limited ]; then
        group "$1"
        [ -n "$group" ] || limit="ulimit -v $((size_max / 1024)); "
    fi
    # The shell goes into its group, and then becomes the program.
    sh -c "${group:+echo \$\$ >$group/cgroup.procs; }${limit:-}exec \"\$0\" \"\$1\"" \
        "$program" "$3" >"$folder/$1.log" 2>&1 &
    pid=$!
    limit=
    pids="$pids $pid"
}

resident() {
    sed -n 's/^VmRSS:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$1/status"
}

peak() {
    sed -n 's/^VmHWM:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$1/status"
}

# A target that gives back what it gets, for each visitor once he has ended his direction.
cat >"$folder/target.py" <<'END'
import socket, threading

def serve(visitor):
    with visitor:
        received = bytearray()
        while piece := visitor.recv(65536):
            received += piece
        visitor.sendall(received)

listener = socket.create_server(("127.0.0.1", 0), backlog=512)
print("Target at %s:%d" % listener.getsockname(), flush=True)
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
END

# 200 visitors, each with something of his own, all connected before any of them is done.
cat >"$folder/visitors.py" <<'END'
import socket, sys, threading

host, port = sys.argv[1].rsplit(":", 1)
served = []

def visit(number, socket):
    message = (b"visitor %d " % number) * 4096
    socket.sendall(message)
    socket.shutdown(1)
    received = bytearray()
    while piece := socket.recv(65536):
        received += piece
    served.append(received == message)

visitors = [socket.create_connection((host, int(port)), timeout=30) for _ in range(200)]
threads = [threading.Thread(target=visit, args=each) for each in enumerate(visitors)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(0 if served.count(True) == 200 else "only %d of 200 were served" % served.count(True))
END

python3 "$folder/target.py" >"$folder/target.log" 2>&1 &
pids=$!
target=$(wait_for target 'Target at')

# tunnel LIMITED: a tunnel with 64 connections ready; process ids in `server` and `client`.
tunnel() {
    start "server-$1" "$1" 'server://secret@127.0.0.1:0/127.0.0.1:0?mode=1&tls=1&auth=1'
    server=$pid
    address=$(wait_for "server-$1" 'Tunnel listening on tcp')
    entry=$(wait_for "server-$1" 'Listening on tcp')
    start "client-$1" "$1" "client://secret@$address/$target?mode=2&min=64&auth=1"
    client=$pid
    wait_for "client-$1" 'Session with' >/dev/null
}

tunnel free
# The threads that made the connections wait a while for more to do.
sleep 15
echo "idle, 64 connections ready, TLS: server $(resident "$server") KiB, client $(resident "$client") KiB resident"

tunnel limited
python3 "$folder/visitors.py" "$entry"
echo "200 visitors at once in 32 MB (${group:-ulimit -v}): all served; at most server $(peak "$server") KiB, client $(peak "$client") KiB resident"
