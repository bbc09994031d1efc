#!/bin/sh
# What is set for the init script, and what comes from it, is in another file.
# shellcheck shell=dash disable=SC1091,SC2034,SC2153
# Tests of the package of OpenWrt, on any machine: the init script runs with stand-ins for what
# procd, uci and the system give it, and what it asks procd for is compared.
#
#   openwrt/test.sh [path/to/nodepass]
#
# Runs in sh, and again in the ash of busybox where that is there. With a path, every URL that
# comes out is also given to that program to be checked.
set -eu
cd "$(dirname "$0")"

nodepass=${1:-}
case $nodepass in
''|/*) ;;
*) nodepass=$(cd "$OLDPWD" && cd "$(dirname "$nodepass")" && pwd)/$(basename "$nodepass") ;;
esac

if [ -z "${PACKAGE_TEST_SHELL:-}" ]; then
    PACKAGE_TEST_SHELL='sh' sh ./test.sh "$nodepass"
    if command -v busybox >/dev/null; then
        PACKAGE_TEST_SHELL='busybox ash' busybox ash ./test.sh "$nodepass"
    else
        echo 'package test: no busybox here, so not tried in its ash'
    fi
    exit
fi

folder=$(mktemp -d)
mkdir "$folder/here"
trap 'rm -rf "$folder"' EXIT
failures=0
checks=0

# ---- stand-ins: uci, as /lib/functions.sh gives it -----------------------------------------

# A file of uci is shell commands of this shape; these three keep what they say.
config() {
    section_count=$((section_count + 1))
    current=${2:-cfg0$section_count}
    sections="$sections $1:$current"
}

option() {
    eval "uci_${current}_$1=\$2"
}

list() {
    eval "before=\${uci_${current}_$1:-}"
    # shellcheck disable=SC2154
    eval "uci_${current}_$1=\${before:+\$before }\$2"
}

config_load() {
    record "config_load $1"
    sections=
    section_count=0
    . "$folder/config"
}

config_foreach() {
    local callback="$1" type="$2" entry
    shift 2
    for entry in $sections; do
        [ "${entry%%:*}" != "$type" ] || "$callback" "${entry#*:}" "$@"
    done
}

config_get() {
    eval "$1=\${uci_${2}_$3:-\${4:-}}"
}

config_get_bool() {
    local found
    config_get found "$2" "$3" "${4:-}"
    case $found in
    1|on|true|yes|enabled) eval "$1=1" ;;
    0|off|false|no|disabled) eval "$1=0" ;;
    *) eval "$1=\${4:-}" ;;
    esac
}

# ---- stand-ins: procd and the system --------------------------------------------------------

record() {
    printf '%s\n' "$*" >>"$folder/record"
}

procd_open_instance() {
    instance=$1
    record "$instance: open"
}

# As the real one: it takes a table, an array or one value, and no other names than it knows. An
# empty argument would end a table.
procd_set_param() {
    local name="$1" value
    shift
    case $name in
    env|limits)
        for value in "$@"; do
            case $value in
            [A-Za-z]*=*) ;;
            *) record "$instance: procd takes no $name '$value'" ;;
            esac
        done
        ;;
    respawn) [ $# -eq 3 ] || record "$instance: procd takes three numbers for respawn" ;;
    command) [ $# -gt 0 ] || record "$instance: procd takes no empty command" ;;
    user|term_timeout|stdout|stderr)
        [ $# -eq 1 ] || record "$instance: procd takes one value for $name"
        ;;
    *) record "$instance: procd takes no $name" ;;
    esac
    case $name in
    env)
        for value in "$@"; do
            record "$instance: env $value"
        done
        ;;
    term_timeout|stdout|stderr)
        case $1 in
        ''|*[!0-9]*) record "$instance: procd takes a number for $name" ;;
        esac
        record "$instance: $name $1"
        ;;
    *) record "$instance: $name $*" ;;
    esac
}

procd_close_instance() {
    record "$instance: close"
    instance=none
}

procd_add_reload_trigger() {
    record "trigger $*"
}

logger() {
    record "logger $*"
}

id() {
    [ "$2" = nodepass ] || [ "$2" = root ]
}

chown() {
    record "chown $*"
}

# The program: notes what it is given, and refuses a URL with the word `refused`.
cat >"$folder/nodepass" <<END
#!/bin/sh
IFS= read -r url
echo "check: \$* \$url \${NP_REPORT_INTERVAL:-}" >>'$folder/checks'
case \$url in
*refused*) echo "nodepass: that is refused" >&2; exit 2 ;;
esac
[ -z '$nodepass' ] || printf '%s\n' "\$url" | '$nodepass' "\$@"
END
chmod +x "$folder/nodepass"

# ---- what tests are made of -----------------------------------------------------------------

# given: the configuration on standard input is started; what was asked for is in the record.
given() {
    cat >"$folder/config"
    : >"$folder/record"
    : >"$folder/checks"
    (
        . ./files/nodepass.init
        PROG=$folder/nodepass
        STATE_DIR=$folder/state
        cd "$folder/here"
        start_service
    ) 2>"$folder/errors" || fail "the init script ended with status $?"
    [ ! -s "$folder/errors" ] || fail "the init script wrote: $(cat "$folder/errors")"
    ! grep -q ': procd takes' "$folder/record" || fail 'procd would not understand that'
}

fail() {
    failures=$((failures + 1))
    printf '%s\n' "FAILED ($PACKAGE_TEST_SHELL): $test: $*" >&2
    sed 's/^/    /' "$folder/record" >&2
}

# expect LINE: that it was asked for, as it is.
expect() {
    checks=$((checks + 1))
    grep -qxF -e "$1" "$folder/record" || fail "missing: $1"
}

# refuse PATTERN: that nothing like it was asked for.
refuse() {
    checks=$((checks + 1))
    ! grep -q -e "$1" "$folder/record" || fail "there is: $1"
}

# equal ACTUAL EXPECTED
equal() {
    checks=$((checks + 1))
    [ "$1" = "$2" ] || fail "'$1' is not '$2'"
}

# ---- tests ----------------------------------------------------------------------------------

test='a server'
given <<'END'
config server 'web'
	option enabled '1'
	option secret 'secret'
	option tunnel ':10101'
	list target ':10080'
	option mode '1'
	option tls '1'
	option auth '1'
END
expect "config_load nodepass"
expect "web: open"
expect "web: command $folder/nodepass"
expect "web: env NODEPASS_URL=server://secret@:10101/:10080?tls=1&mode=1&auth=1"
expect "web: user nodepass"
expect "web: limits nofile=65536 65536"
expect "web: respawn 3600 5 0"
expect "web: term_timeout 10"
expect "web: stdout 1"
expect "web: stderr 1"
expect "web: close"
refuse "logger"
refuse "NP_STATE_DIR"

test='no key in arguments'
refuse "command.*secret"
equal "$(cat "$folder/checks")" "check: --check - server://secret@:10101/:10080?tls=1&mode=1&auth=1 "

test='the command line that procd gets has no more than the program'
equal "$(grep -c 'command' "$folder/record")" 1

test='sections that are off, or of another type'
given <<'END'
config server 'off'
	option enabled '0'
	option tunnel ':10101'
	list target ':10080'
config server 'silent'
	option tunnel ':10101'
	list target ':10080'
config client 'no'
	option enabled 'no'
	option tunnel 'a.example:1'
	list target ':2'
config other 'other'
	option enabled '1'
	option tunnel ':10101'
	list target ':10080'
END
refuse ": open"
refuse "logger"

test='several sections, each an instance; one without a name'
given <<'END'
config client 'first'
	option enabled 'true'
	option tunnel 'server.example.com:10101'
	list target '127.0.0.1:8080'
config client
	option enabled 'on'
	option tunnel '127.0.0.1:10080'
	option target '127.0.0.1:80'
	option mode '1'
config server 'third'
	option enabled '1'
	option tunnel ':10103'
	list target ':10083'
END
expect "first: env NODEPASS_URL=client://server.example.com:10101/127.0.0.1:8080"
expect "cfg02: env NODEPASS_URL=client://127.0.0.1:10080/127.0.0.1:80?mode=1"
expect "third: env NODEPASS_URL=server://:10103/:10083"
equal "$(grep -c ': open' "$folder/record")" 3

test='a key of special characters'
given <<'END'
config client 'key'
	option enabled '1'
	option secret '%a/b:c@d?e#f&g=h+i j,k;l"m$n`o\p*q[r]s{t}u|v^w<x>y!z(1)2~-_.ä'
	option tunnel 'a.example:10101'
	list target '127.0.0.1:8080'
	option mode '2'
END
encoded='%25a%2Fb%3Ac%40d%3Fe%23f%26g%3Dh%2Bi%20j%2Ck%3Bl%22m%24n%60o%5Cp%2Aq%5Br%5Ds%7Bt%7Du%7Cv%5Ew%3Cx%3Ey%21z%281%292~-_.ä'
expect "key: env NODEPASS_URL=client://$encoded@a.example:10101/127.0.0.1:8080?mode=2"

test='a key with a quote'
given <<'END'
config client 'key'
	option enabled '1'
	option secret "it's"
	option tunnel 'a.example:10101'
	list target '127.0.0.1:8080'
END
expect "key: env NODEPASS_URL=client://it%27s@a.example:10101/127.0.0.1:8080"

test='IPv6, several targets, and no file names in place of brackets'
for name in 1:10101 1:8080 2:8081 1:8081; do
    : >"$folder/here/$name"
done
given <<'END'
config client 'six'
	option enabled '1'
	option tunnel '[2001:db8::1]:10101'
	list target '[::1]:8080'
	list target '[2001:db8::2]:8081'
	list target 'b.example:8082'
	option lbs '2'
END
expect "six: env NODEPASS_URL=client://[2001:db8::1]:10101/[::1]:8080,[2001:db8::2]:8081,b.example:8082?lbs=2"

test='several targets in one option, with commas or spaces'
given <<'END'
config client 'commas'
	option enabled '1'
	option tunnel 'a.example:1'
	option target '127.0.0.1:2,127.0.0.1:3'
config client 'spaces'
	option enabled '1'
	option tunnel 'a.example:1'
	option target '127.0.0.1:2  127.0.0.1:3'
END
expect "commas: env NODEPASS_URL=client://a.example:1/127.0.0.1:2,127.0.0.1:3"
expect "spaces: env NODEPASS_URL=client://a.example:1/127.0.0.1:2,127.0.0.1:3"

test='values of special characters, lists of name servers, words for booleans'
given <<'END'
config server 'values'
	option enabled '1'
	option tunnel ':10101'
	list target ':10080'
	option tls '2'
	option crt '/etc/ssl/a b&c=d+e%.pem'
	option key '/etc/ssl/key#1.pem'
	list dns '1.1.1.1'
	list dns '[2001:db8::53]:5353'
	option noudp 'on'
	option notcp 'off'
END
url='server://:10101/:10080?tls=2&crt=/etc/ssl/a%20b%26c%3Dd%2Be%25.pem&key=/etc/ssl/key%231.pem'
expect "values: env NODEPASS_URL=$url&dns=1.1.1.1,%5B2001:db8::53%5D:5353&notcp=0&noudp=1"

test='what is missing is said, and the other sections start'
given <<'END'
config server 'aimless'
	option enabled '1'
	option tunnel ':10101'
config client 'lost'
	option enabled '1'
	list target '127.0.0.1:8080'
config master 'deaf'
	option enabled '1'
config server 'good'
	option enabled '1'
	option tunnel ':10101'
	list target ':10080'
END
expect "logger -t nodepass -p daemon.err section 'aimless' is not started: option 'target' is missing: the address of the target"
expect "logger -t nodepass -p daemon.err section 'lost' is not started: option 'tunnel' is missing: the address of the tunnel"
expect "logger -t nodepass -p daemon.err section 'deaf' is not started: option 'listen' is missing: the address of the API"
expect "good: open"
equal "$(grep -c ': open' "$folder/record")" 1

test='what the program refuses is said in its words, and no instance is made'
given <<'END'
config server 'bad'
	option enabled '1'
	option tunnel ':10101'
	list target ':10080'
	option crt 'refused'
	option report_interval '7s'
END
expect "logger -t nodepass -p daemon.err section 'bad' is not started: nodepass: that is refused"
refuse ": open"
equal "$(cat "$folder/checks")" "check: --check - server://:10101/:10080?crt=refused 7s"

test='variables, and the time to stop'
given <<'END'
config client 'variables'
	option enabled '1'
	option tunnel 'a.example:1'
	list target ':2'
	option shutdown_timeout '1m30s'
	option report_interval '10s'
	option min_pool_capacity '8'
	option ssl_cert_file '/etc/ssl/own certificates.pem'
	option nofile '4096'
END
expect "variables: env NP_SHUTDOWN_TIMEOUT=1m30s"
expect "variables: env NP_REPORT_INTERVAL=10s"
expect "variables: env MIN_POOL_CAPACITY=8"
expect "variables: env SSL_CERT_FILE=/etc/ssl/own certificates.pem"
expect "variables: limits nofile=4096 4096"
expect "variables: term_timeout 95"

test='durations, in seconds rounded up'
for example in 0:0 1ms:1 500ms:1 1s:1 1.5s:2 2m:120 1.5h:5400 1h1m1s:3661 900us:0; do
    equal "$(. ./files/nodepass.init; seconds_of "${example%:*}")" "${example#*:}"
done

# user_of OPTIONS…: the user that a section of these options runs as.
user_of() {
    local type="$1" line
    shift
    {
        echo "config $type 'user'"
        echo "option enabled '1'"
        for line in "$@"; do
            echo "option ${line%%=*} '${line#*=}'"
        done
    } | given
    sed -n 's/^user: user //p' "$folder/record"
}

test='root only where a low port is listened at'
equal "$(user_of server tunnel=:443 target=:10080 mode=1)" root
equal "$(user_of server tunnel=:10101 target=:80 mode=1)" root
equal "$(user_of server tunnel=:10101 target=192.168.1.1:80 mode=1)" root
equal "$(user_of server tunnel=:10101 target=:1023 mode=1)" root
equal "$(user_of server tunnel=:10101 target=:1024 mode=1)" nodepass
equal "$(user_of server tunnel=:10101 target=:0 mode=1)" nodepass
equal "$(user_of server tunnel=:10101 target=192.168.1.2:80 mode=2)" nodepass
equal "$(user_of server tunnel=:443 target=192.168.1.2:8080 mode=2)" root
equal "$(user_of server tunnel=:10101 target=:80)" root
equal "$(user_of server tunnel=:10101 target=192.168.1.2:80)" nodepass
equal "$(user_of server tunnel=:10101 target=:81,:80)" nodepass
equal "$(user_of client tunnel=:53 target=9.9.9.9:53 mode=1)" root
equal "$(user_of client tunnel=:10053 target=9.9.9.9:53 mode=1)" nodepass
equal "$(user_of client tunnel=a.example:443 target=127.0.0.1:80 mode=2)" nodepass
equal "$(user_of client tunnel=a.example:443 target=127.0.0.1:80)" nodepass
equal "$(user_of client 'tunnel=[::]:53' target=9.9.9.9:53)" root
equal "$(user_of master listen=:443)" root
equal "$(user_of master listen=:9090)" nodepass

test='the user that is asked for'
equal "$(user_of server tunnel=:443 target=:10080 mode=1 user=nodepass)" nodepass
equal "$(user_of client tunnel=a.example:1 target=:80 mode=2 user=root)" root

test='a user that is not there: procd would take root'
equal "$(user_of client tunnel=a.example:1 target=:80 user=nobody-there)" ''
expect "logger -t nodepass -p daemon.err section 'user' is not started: there is no user 'nobody-there'"

test='masters and their folders'
given <<END
config master 'one'
	option enabled '1'
	option listen '127.0.0.1:9090'
	option prefix '/admin/np'
	option tls '1'
config master 'two'
	option enabled '1'
	option listen ':9091'
	option state_dir '$folder/two'
config master 'three'
	option enabled '1'
	option listen ':9092'
	option secret 'not for a master'
END
expect "one: env NODEPASS_URL=master://127.0.0.1:9090/admin/np?tls=1"
expect "one: env NP_STATE_DIR=$folder/state"
expect "one: term_timeout 20"
expect "chown -R nodepass $folder/state"
expect "two: env NODEPASS_URL=master://:9091/"
expect "two: env NP_STATE_DIR=$folder/two"
expect "chown -R nodepass $folder/two"
expect "logger -t nodepass -p daemon.err section 'three' is not started: option 'state_dir' is '$folder/state', which another master has"
equal "$(grep -c ': open' "$folder/record")" 2
equal "$(stat -c %a "$folder/state")" 700
equal "$(stat -c %a "$folder/two")" 700

test='a folder of the operator is left as it is'
mkdir -m 0755 "$folder/there"
given <<END
config master 'one'
	option enabled '1'
	option listen ':9090'
	option state_dir '$folder/there'
END
expect "one: env NP_STATE_DIR=$folder/there"
refuse "chown"
equal "$(stat -c %a "$folder/there")" 755

test='a folder that cannot be made'
: >"$folder/file"
given <<END
config master 'one'
	option enabled '1'
	option listen ':9090'
	option state_dir '$folder/file/state'
END
expect "logger -t nodepass -p daemon.err section 'one' is not started: its folder '$folder/file/state' cannot be made"
refuse ": open"

test='reload after a change of the configuration'
: >"$folder/record"
(. ./files/nodepass.init && service_triggers)
expect "trigger nodepass"

# options_of CORE: those that the program has for it, out of the table in its source.
options_of() {
    awk -v core="$1" '
        # const TUNNEL: &[Core] = &[Core::Server, Core::Client];
        /^const [A-Z]+: &\[Core\]/ { name = $2; sub(/:/, "", name); cores[name] = tolower($0) }
        /^ *name: "/ { split($0, parts, "\""); name = parts[2] }
        /^ *cores: / { set = $2; sub(/,/, "", set); if (index(cores[set], "core::" core)) print name }
    ' ../src/config/options.rs | sort
}

test='every option of the URL can be set, and only for those it is for'
(. ./files/nodepass.init; printf '%s\n' "$SERVER_OPTIONS") | tr ' ' '\n' | sort >"$folder/server"
(. ./files/nodepass.init; printf '%s\n' "$CLIENT_OPTIONS") | tr ' ' '\n' | sort >"$folder/client"
(. ./files/nodepass.init; printf '%s\n' "$MASTER_OPTIONS") | tr ' ' '\n' | sort >"$folder/master"
for core in server client master; do
    [ -n "$(options_of "$core")" ] || fail "no options of a $core found in its source"
    equal "$(cat "$folder/$core")" "$(options_of "$core")"
done

test='every variable can be set'
names=$(sed -n 's/^ *name: "\(.*\)",$/\1/p' ../src/config/env.rs)
[ -n "$names" ] || fail 'no variables found in the source'
variables=$(. ./files/nodepass.init; printf '%s\n' "$VARIABLES")
for name in $names; do
    checks=$((checks + 1))
    printf '%s\n' "$variables" | grep -q ":$name\$" || fail "no option for $name"
done

test='every option reaches the URL'
for core in server client master; do
    names=$(cat "$folder/$core")
    {
        echo "config $core 'all'"
        echo "option enabled '1'"
        echo "option tunnel 'a.example:10101'"
        echo "option listen 'a.example:10101'"
        echo "list target '127.0.0.1:8080'"
        for name in $names; do
            # 1 is a good value of all but these.
            case $name in
            log) echo "option log 'debug'" ;;
            dial|dns) echo "option $name '127.0.0.1'" ;;
            read) echo "option read '1s'" ;;
            notcp) echo "option notcp '0'" ;;
            crt|key) echo "option $name '/1.pem'" ;;
            sni) echo "option sni 'b.example'" ;;
            *) echo "option $name '1'" ;;
            esac
        done
    } | given
    for name in $names; do
        checks=$((checks + 1))
        grep -q "NODEPASS_URL=.*[?&]$name=" "$folder/record" || fail "$core: $name is not in the URL"
    done
done

# sample LINES: the configuration that is installed, with what they say done to it.
sample() {
    sed -e "$1" files/nodepass.config
}

test='the configuration as it is installed starts nothing'
sample '' | given
refuse ": open"
refuse "logger"
grep -q "^config server 'server'" files/nodepass.config || fail 'no sections in it'

test='it starts once it is enabled and has a key'
sample "s/enabled '0'/enabled '1'/; s/secret ''/secret 'secret'/" >"$folder/sample"
given <"$folder/sample"
refuse "logger"
expect "server: env NODEPASS_URL=server://secret@:10101/:10080?tls=1&mode=1&auth=1"
expect "client: env NODEPASS_URL=client://secret@server.example.com:10101/127.0.0.1:80?mode=2&auth=1"
expect "master: env NODEPASS_URL=master://192.168.1.1:9090/api?tls=1"

test='all that is commented out in it is good'
sample "s/enabled '0'/enabled '1'/; s/^#\(.option\)/\1/; /state_dir/d" >"$folder/sample"
given <"$folder/sample"
refuse "logger"
equal "$(grep -c ': open' "$folder/record")" 3

test='it explains every option and variable'
for core in server client master; do
    names=$(cat "$folder/$core")
    # The part of the file that is about it.
    sed -n "/^config $core /,/^config /p" files/nodepass.config >"$folder/part"
    for name in $names; do
        checks=$((checks + 1))
        grep -q "^#*	option $name '" "$folder/part" || fail "$core: $name is not explained"
    done
done
for example in $variables; do
    checks=$((checks + 1))
    grep -q "^#	option ${example%%:*} '" files/nodepass.config ||
        fail "${example%%:*} is not explained"
done

# ---- the package ----------------------------------------------------------------------------

# Enough of a build tree for make to read the package's file: with Rust in the packages feed, and
# with Rust in OpenWrt itself.
for tree in feed own; do
    mkdir -p "$folder/$tree/include" "$folder/$tree/feeds/packages/lang/rust"
    # shellcheck disable=SC2016
    echo 'INCLUDE_DIR=$(TOPDIR)/include' >"$folder/$tree/rules.mk"
    cat >"$folder/$tree/include/package.mk" <<'END'
define BuildPackage
$(eval $(Package/$(1)))
$(info package $(1): $(VARIANT): $(strip $(DEPENDS)): $(strip $(Package/$(1)/conffiles)))
endef
END
done
cat >"$folder/feed/feeds/packages/lang/rust/rust-package.mk" <<'END'
RUST_ARCH_DEPENDS:=@rust
CARGO_PKG_VARS=CC=gcc
CARGO_PKG_ARGS=--locked
END
cat >"$folder/own/include/rust-package.mk" <<'END'
RUST_ARCH_DEPENDS:=@rust
RUST_PKG_DEPENDS=@toolchain $(RUST_ARCH_DEPENDS) $(if $(filter 1,$(RUST_PREFER_DYNAMIC)),+libstd)
RUST_PREFER_DYNAMIC?=1
CARGO_PKG_VARS=CC=gcc
CARGO_PKG_ARGS:=--offline --locked
END

# make_says TREE VARIANT VARIABLE: its value when this variant is built.
make_says() {
    make --no-print-directory -s -f Makefile -f - TOPDIR="$folder/$1" BUILD_VARIANT="$2" print <<END
print:
	\$(info $3: \$($3))@:
END
}

# made TREE VARIANT VARIABLE: the value alone.
made() {
    make_says "$@" | sed -n "s/^$3: *//p"
}

test='the features of each variant are those of the program'
known=$(sed -n '/^\[features\]/,/^\[dep/s/^\([a-z0-9-]*\) = .*/\1/p' ../Cargo.toml)
for variant in full router minimal; do
    make_says feed "$variant" RUST_PKG_FEATURES >"$folder/made"
    features=$(sed -n 's/^RUST_PKG_FEATURES: //p' "$folder/made")
    [ -n "$features" ] || fail "$variant: no features"
    for feature in $features; do
        checks=$((checks + 1))
        printf '%s\n' "$known" | grep -qxF "$feature" || fail "$variant: no feature $feature"
    done
    equal "$(made feed "$variant" CARGO_PKG_ARGS)" '--locked --no-default-features'
    equal "$features" "$(../scripts/features.sh "$variant" | tr ',' ' ')"
done

test='each package has its variant, dependencies and configuration'
grep '^package ' "$folder/made" >"$folder/record" || :
expect "package nodepass: router: @rust +ca-bundle: /etc/config/nodepass"
expect "package nodepass-full: full: @rust +ca-bundle @(aarch64||arm||i386||mips64el||riscv64||x86_64): /etc/config/nodepass"
expect "package nodepass-minimal: minimal: @rust +ca-bundle: /etc/config/nodepass"

test='Rust of OpenWrt itself: its dependencies, and crates may be fetched'
equal "$(made feed router PKG_BUILD_DEPENDS)" 'rust/host'
equal "$(made own router PKG_BUILD_DEPENDS)" ''
equal "$(made own router CARGO_PKG_ARGS)" '--locked --no-default-features'
make_says own router PKG_NAME | grep '^package ' >"$folder/record" || :
expect "package nodepass: router: @toolchain @rust +ca-bundle: /etc/config/nodepass"

test='a profile for size, one that Cargo.toml has'
equal "$(made feed router CARGO_PKG_PROFILE)" small
grep -qxF '[profile.small]' ../Cargo.toml || fail 'no such profile'

test='a compiler for C++ where there is QUIC'
made feed full CARGO_PKG_VARS | grep -q 'TARGET_CXX=' || fail 'full: BoringSSL has no compiler'
for variant in router minimal; do
    equal "$(made feed "$variant" CARGO_PKG_VARS)" 'CC=gcc'
done

test='the version is that of the program'
equal "$(made feed router PKG_VERSION)" \
    "$(sed -n 's/^version = "\(.*\)"/\1/p' ../Cargo.toml | head -n 1)"

test='what is built from is there'
for source in $(made feed router NODEPASS_SOURCES); do
    checks=$((checks + 1))
    [ -e "../$source" ] || fail "no $source"
done
# Without it a second build would not notice what was changed there.
for source in $(made feed router PKG_FILE_DEPENDS); do
    checks=$((checks + 1))
    [ -e "$source" ] || fail "no $source to look at"
done
equal "$(made feed router PKG_FILE_DEPENDS | wc -w)" "$(made feed router NODEPASS_SOURCES | wc -w)"

if [ "$failures" -gt 0 ]; then
    echo "package test: $failures of $checks checks failed ($PACKAGE_TEST_SHELL)" >&2
    exit 1
fi
echo "package test: $checks checks passed ($PACKAGE_TEST_SHELL)${nodepass:+, URLs checked by $nodepass}"
