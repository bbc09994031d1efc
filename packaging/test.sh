#!/bin/sh
# Tests of the unit of systemd and of the image for Docker, as far as they go without either.
#
#   packaging/test.sh path/to/nodepass
set -eu
cd "$(dirname "$0")/.."

nodepass=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
    echo "packaging test: $1" >&2
    exit 1
}

# What is installed fits together: the unit starts the program of the same prefix.
make --no-print-directory -s install PREFIX="$folder/usr" DESTDIR= BINARY="$nodepass"
unit=$folder/usr/lib/systemd/system/nodepass@.service
grep -qxF "ExecStart=$folder/usr/bin/nodepass" "$unit" || fail 'the unit starts another program'
for file in bin/nodepass share/man/man1/nodepass.1 share/doc/nodepass/nodepass.env; do
    [ -s "$folder/usr/$file" ] || fail "not installed: $file"
done
if command -v systemd-analyze >/dev/null; then
    # The manual that it names is not where this machine would look for it.
    complaints=$(systemd-analyze verify --man=no "$unit" 2>&1) || fail "the unit: $complaints"
    [ -z "$complaints" ] || fail "the unit: $complaints"
    verified='unit verified by systemd-analyze'
else
    verified='no systemd-analyze here, so the unit was not verified'
fi

# A URL that cannot be used ends the program with the status that keeps the unit from starting it
# again.
status=0
NODEPASS_URL=server://:99999/:1 "$nodepass" >/dev/null 2>&1 || status=$?
grep -qxF "RestartPreventExitStatus=$status" "$unit" || fail "status $status would be tried again"

# The image lets its user write where a master keeps its instances, and that outlives it.
user=$(sed -n 's/^USER //p' packaging/Dockerfile)
state=$(sed -n 's/^ENV NP_STATE_DIR=//p' packaging/Dockerfile)
grep -qxF "VOLUME $state" packaging/Dockerfile || fail "$state of the image is no volume"
grep -q "chown $user /image$state\$" packaging/Dockerfile || fail "$state is not that of $user"

# Whoever stops it waits for as long as the unit does.
wait=$(sed -n 's/^TimeoutStopSec=//p' "$unit")
grep -q "^docker run .*--stop-timeout $wait " README.md || fail "README's docker does not wait $wait s"

# Every URL of the sample, the commented ones as well, is one that the program takes.
urls=$(sed -n 's/^#*NODEPASS_URL=//p' packaging/nodepass.env)
[ -n "$urls" ] || fail 'no URL in nodepass.env'
for url in $urls; do
    "$nodepass" --check "$url" >/dev/null || fail "nodepass.env: $url"
done

# What the image is built from is there, and is let in.
sources=$(sed -n 's/^COPY \([^-].*\) [^ ]*$/\1/p' packaging/Dockerfile)
[ -n "$sources" ] || fail 'the Dockerfile copies nothing'
for source in $sources; do
    [ -e "$source" ] || fail "the Dockerfile copies $source, which is not there"
    grep -qxF "!$source" packaging/Dockerfile.dockerignore || fail "Docker does not see $source"
done

# What goes along with the program names what is in it, with its terms.
for profile in full minimal; do
    PROFILE=$profile scripts/licenses.sh >"$folder/$profile"
    grep -q '^ring v[0-9.]*: Apache-2.0 AND ISC$' "$folder/$profile" || fail "no licence of ring: $profile"
    grep -q 'Permission to use, copy, modify' "$folder/$profile" || fail "no text of it: $profile"
done
grep -qx 'Swagger UI' "$folder/full" || fail 'no licence of Swagger UI'
! grep -q '^quiche\|^Swagger' "$folder/minimal" || fail 'a licence of what is not in minimal'

# Both set variables that the program knows.
names=$(sed -n 's/^\(ENV \|Environment=\|#\{0,1\}\)\(N[A-Z]*_[A-Z_]*\)=.*/\2/p' packaging/*)
for name in $names; do
    "$nodepass" --help | grep -q "$name" || fail "no variable $name"
done

echo "packaging test: passed, $verified"
