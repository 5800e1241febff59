# shellcheck shell=bash
# A demo cluster for one script: a temporary directory with a LUN, lockd and hosts, and its certain
# end. Sourced from the top of the repository by scripts/demo and by the scripts beside this file.
set -euo pipefail

script=$(basename "$0")
declare -A pid=()
declare -A lun_of=()  # the path that a host has to the LUN, where it is not the LUN's own
mount_options=()
mount_command=(vmfs)

cleanup() {
    local status=$? host
    set +e
    { exec 9>&-; } 2>/dev/null
    # When all went well, lockd alone is left, and ends when it is asked to.
    [ $status = 0 ] && [ -n "${pid[lockd]:-}" ] && kill "${pid[lockd]}" && wait "${pid[lockd]}"
    # Else killed, not asked: a host may be stopped, and whatever waits for it ends with it.
    # Everything that was started here is a job of this shell.
    # shellcheck disable=SC2046
    kill -9 $(jobs -p) 2>/dev/null
    for host in a b path-a path-b; do
        if grep -qs " $work/$host " /proc/mounts; then umount -l "$work/$host"; fi
    done
    wait 2>/dev/null
    [ $status = 0 ] || { echo; echo "$script: failed (status $status); the logs:"; tail -n 20 "$work"/*.log; }
    rm -rf "$work"
}

# Install what is missing, and make the temporary directory `work`, which ends with the script.
prepare() {
    scripts/setup run
    export PATH="$PWD/.venv/bin:$PATH"
    [ "$(id -u)" = 0 ] || { echo "$script: mounting needs root; run it with sudo" >&2; exit 1; }
    [ -e /dev/fuse ] || { echo "$script: no /dev/fuse on this machine (modprobe fuse?)" >&2; exit 1; }
    # A short name: the path of a unix socket has 107 bytes at most.
    work=$(mktemp -d "${TMPDIR:-/tmp}/vmfs.XXXXXX")
    socket=$work/lockd/sock
    trap cleanup EXIT
    [ ${#socket} -le 107 ] || fail "the path of a socket in TMPDIR would be too long: $socket"
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }
fail() { echo "$script: $*" >&2; exit 1; }
milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# Wait until a line appears in a log, or its process has ended.
await_line() {
    local log=$1 text=$2 process=$3
    timeout 30 grep -q -- "$text" <(tail -n +1 -F --pid="$process" "$log" 2>/dev/null) || {
        echo "$script: waited in vain for '$text'" >&2; cat "$log" >&2; return 1; }
}

# What mkfs says one might type next is done here anyway.
make_lun() { run vmfs mkfs "$work/lun" --label ds1 "$@" | sed '/^Next:/,$d'; mkdir -m 700 "$work/lockd"; }

# Daemons get no descriptor 9: it is a user's open file, and stays open as long as anybody has it.
start_lockd() {
    : >"$work/lockd.log"  # what an earlier one said is no sign of this one
    lockd --lun ds1="$work/lun" --socket "$socket" --state "$work/state" >"$work/lockd.log" 2>&1 9>&- &
    pid[lockd]=$!
    await_line "$work/lockd.log" "lockd: ready" "${pid[lockd]}"
    grep "lockd: ready" "$work/lockd.log"
}

mount_host() {
    local host=$1
    mkdir -p "$work/$host"; : >"$work/$host.log"
    "${mount_command[@]}" mount "${lun_of[$host]:-$work/lun}" "$work/$host" --lockd "$socket" \
        --host "esx-$host" "${mount_options[@]}" >"$work/$host.log" 2>&1 9>&- &
    pid[$host]=$!
    await_line "$work/$host.log" "vmfs: ready" "${pid[$host]}"
    grep "vmfs: ready" "$work/$host.log"
}

# A path to the LUN for one host alone; it is broken while the file path-HOST.broken exists.
mount_path_of() {
    local host=$1
    mkdir "$work/path-$host"
    python scripts/faults/failing_lun.py "$work/lun" "$work/path-$host" "$work/path-$host.broken" \
        >"$work/path-$host.log" 2>&1 9>&- &
    await_line "$work/path-$host.log" "failing_lun: ready" "$!"
    lun_of[$host]=$work/path-$host/lun
}

# A LUN, lockd, and hosts a and b on it; arguments go to mkfs.
start_cluster() { make_lun "$@"; start_lockd; mount_host a; mount_host b; }

# Write a text into a file, durably.
write_synced() { printf '%s' "$2" | dd of="$1" conv=fsync,notrunc status=none; }

# A host has died: it was SIGKILL that ended it. What is left of its mount is taken away.
bury() {
    local host=$1 status=0
    wait "${pid[$host]}" 2>/dev/null || status=$?
    [ $status = 137 ] || fail "host $host ended with status $status, not by SIGKILL"
    { exec 9>&-; } 2>/dev/null || true
    umount -l "$work/$host"; unset "pid[$host]"
}

must_hold() { [ "$(cat "$1")" = "$2" ] || fail "$1 does not hold '$2'"; echo "seen: $1 holds '$2'"; }
must_run() { kill -0 "${pid[$1]}" 2>/dev/null || fail "$1 has ended"; echo "seen: $1 still runs"; }
must_be_busy() {
    if write_synced "$1" x 2>"$work/busy"; then fail "$1 could be written while another host has it open"; fi
    grep -q "Device or resource busy" "$work/busy" || { cat "$work/busy" >&2; fail "not EBUSY"; }
    echo "seen: $1 is EBUSY"
}
must_be_fenced() { grep "fences" "$work/lockd.log" || fail "lockd fenced nobody"; }
must_not_be_fenced() {
    if grep "fences" "$work/lockd.log"; then fail "a host was fenced"; fi
    echo "seen: nobody was fenced"
}

# Unmount who is still there, and check the volume.
finish() {
    local host
    step "Unmount, and check the volume"
    for host in a b; do
        if [ -n "${pid[$host]:-}" ]; then
            run vmfs umount "$work/$host"; wait "${pid[$host]}"; unset "pid[$host]"
        fi
        if [ -n "${lun_of[$host]:-}" ]; then umount "$work/path-$host"; fi
    done
    run vmfs check "$work/lun"
    printf '\n%s: all of it was seen. Everything it made is gone again.\n' "$script"
}
