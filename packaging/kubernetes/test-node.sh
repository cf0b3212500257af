#!/usr/bin/env bash
# Runs the installer on a node: a clean Debian system with a real containerd, in namespaces of its own.
# Usage: test-node.sh WORK [configurations|administrator|refusals|daemonset|faults|image]..., as root; test.sh calls it. All but the
# last unless named. KATA_FAULT_STEP (5): every which call is made to fail; KATA_FAULT_FIRST (1): from which on.
# With containerd 1.6, 1.7 and 2.1: install, again, upgrade, uninstall, each way to a configuration, what is refused; then each
# program that the installer calls fails once, and the installer is killed once in its place: the node must be as before.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=base.sh
. "$top/scripts/base.sh"

here=$top/packaging/kubernetes
work=$1
root=$work/root
if [ -z "${KATA_NODE_TEST_INSIDE:-}" ]; then
    KATA_NODE_TEST_INSIDE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private "$0" "$@"
fi
ip link set lo up

# What the installer is told. The API server is ours, the rest is the node's.
export KATA_HOST=$root KATA_ARTIFACTS=$work/product KATA_RESTART=restart-containerd KATA_DEADLINE=30 TMPDIR=$work/tmp
export NODE_NAME=checked KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=6443 KATA_SERVICE_ACCOUNT=$work/api
export KATA_NAMESPACE=kube-system KATA_DAEMONSET=kata-deploy

# A node with a containerd of the version; its configuration file is standard input, or there is none if that is empty.
new_node() {
    local engine=$cache/engines/containerd-$1 text
    text=$(cat)
    end_node
    mount -t tmpfs kata-node-test "$work/node"
    mkdir "$work/node/upper" "$work/node/work"
    mount -t overlay -o "lowerdir=$base,upperdir=$work/node/upper,workdir=$work/node/work" kata-node-test "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount --rbind /sys "$root/sys"
    mount -t tmpfs kata-node-test "$root/run"
    cp "$engine"/usr/bin/* "$root/usr/bin/"
    # A service manager's part: it ends the old one and starts a new one. A test lets it fail by /run/broken.
    cat >"$root/usr/local/bin/restart-containerd" <<'RESTART'
#!/bin/sh
if [ -e /run/containerd.pid ]; then
    kill "$(cat /run/containerd.pid)" 2>/dev/null
    while kill -0 "$(cat /run/containerd.pid)" 2>/dev/null; do sleep 0.02; done
    rm /run/containerd.pid
fi
if [ -e /run/broken ]; then
    rm /run/broken
    echo "containerd was told not to start" >&2
    exit 1
fi
setsid containerd >/run/containerd.log 2>&1 </dev/null &
echo $! >/run/containerd.pid
echo >>/run/restarts
RESTART
    chmod 755 "$root/usr/local/bin/restart-containerd"
    if [ -n "$text" ]; then
        mkdir -p "$root/etc/containerd"
        # Another mode, and a time of the past: both must come back.
        printf '%s\n' "$text" >"$root/etc/containerd/config.toml"
        chmod 640 "$root/etc/containerd/config.toml"
        touch -d 2024-02-03T04:05:06.123456789Z "$root/etc/containerd/config.toml"
    fi
    chroot "$root" restart-containerd
    wait_for_containerd
    : >"$work/api/labels"
    : >"$root/run/restarts"
}

end_node() {
    mountpoint -q "$work/node" || return 0
    kill "$(cat "$root/run/containerd.pid")" 2>/dev/null || :
    umount --recursive --lazy "$root"
    umount --lazy "$work/node"
}

wait_for_containerd() {
    local until=$((SECONDS + 60))
    until chroot "$root" ctr plugins ls 2>/dev/null | grep -qE '^io\.containerd\.grpc\.v1 +cri +.* ok *$'; do
        [ "$SECONDS" -lt "$until" ] || fail "containerd has not answered in 60 s: $(tail -n 5 "$root/run/containerd.log")"
        sleep 0.1
    done
}

# Everything of the node but what containerd itself keeps: path, kind, mode, owner, target, time of files, content where the
# installer writes. With an argument without the times.
snapshot() {
    local time=%T@
    [ $# = 0 ] || time=
    (cd "$root" && {
        find . -mindepth 1 \( -path ./proc -o -path ./dev -o -path ./sys -o -path ./run -o -path ./var/lib/containerd -o \
            -path ./opt/containerd \) -prune -o -type d -printf '%P %y %m %U:%G\n' -o -type f -printf "%P %y %m %U:%G %s $time\n" -o \
            -printf '%P %y %m %U:%G %l\n'
        find etc opt usr/local -path opt/containerd -prune -o -type f -print0 | xargs -0r sha256sum
    }) | LC_ALL=C sort
    sort "$work/api/labels"
}

# same BEFORE WHEN [WITHOUT-TIMES]
same() {
    snapshot ${3:+x} >"$work/now"
    diff -U0 "$1" "$work/now" >"$work/difference" && return
    grep '^[-+][^-+]' "$work/difference" | head -n 20 >&2
    fail "the node is not as it should be $2; see above (- expected, + found); $(cat "$work/output" 2>/dev/null)"
}

deploy() { "$here/kata-deploy.sh" "$@" >"$work/output" 2>&1; }

succeeds() { deploy "$@" || fail "kata-deploy $* failed: $(cat "$work/output")"; }

# refuses WANTED ARGUMENTS...
refuses() {
    local wanted=$1
    shift
    ! deploy "$@" || fail "kata-deploy $* succeeded, but should have said \"$wanted\""
    grep -qF -- "$wanted" "$work/output" || fail "kata-deploy $* did not say \"$wanted\" but: $(cat "$work/output")"
}

# The configuration that containerd really runs with.
has() { chroot "$root" containerd config dump 2>/dev/null | grep -qE -- "$1" || fail "containerd's configuration has no $1 ($2)"; }
restarts() { wc -l <"$root/run/restarts"; }

version2='version = 2
# A comment of the administrator.
oom_score = -999

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.example/pause:3.10"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      default_runtime_name = "other"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
        runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other.options]
          SystemdCgroup = true'
version3=${version2/version = 2/version = 3}
version3=${version3//io.containerd.grpc.v1.cri/io.containerd.cri.v1.runtime}
version3=${version3/    sandbox_image = \"registry.example\/pause:3.10\"$'\n'/}

# once VERSION WHAT: install, check, again, upgrade, uninstall; the configuration was given to new_node.
once() {
    local release=$1 what="containerd $1, $2" other=$3 old
    snapshot >"$work/before"
    succeeds install
    grep -q 'kata-runtime=true' "$work/api/labels" || fail "the node has no label ($what)"
    [ "$(restarts)" = 1 ] || fail "containerd was restarted $(restarts) times ($what)"
    has 'runtimes\.["'\'']?kata["'\'']?\]' "$what"
    has 'runtimes\.["'\'']?kata-qemu["'\'']?\]' "$what"
    has '^ *runtime_path = ["'\'']/opt/kata/bin/containerd-shim-kata-v2["'\'']' "$what"
    [ -z "$other" ] || has 'SystemdCgroup = true' "$what: what the administrator had set is lost"
    [ -z "$other" ] || has "default_runtime_name = [\"']other[\"']" "$what: what the administrator had set is lost"
    succeeds check
    snapshot >"$work/installed"
    succeeds install
    [ "$(restarts)" = 1 ] || fail "installing again restarted containerd ($what)"
    same "$work/installed" "after installing again ($what)"
    old=$(readlink -f "$root/opt/kata")
    echo upgraded >"$work/product/share/kata-containers/upgraded"
    succeeds install
    rm "$work/product/share/kata-containers/upgraded"
    [ -e "$root/opt/kata/share/kata-containers/upgraded" ] || fail "the upgrade is not there ($what)"
    [ "$(restarts)" = 1 ] || fail "an upgrade restarted containerd ($what)"
    [ ! -e "$old" ] || fail "the old version is still there, though nothing uses it ($what)"
    succeeds check
    succeeds uninstall
    [ "$(restarts)" = 2 ] || fail "uninstalling did not restart containerd once ($what)"
    same "$work/before" "after uninstalling ($what)"
    succeeds uninstall
    grep -q 'nothing is installed' "$work/output" || fail "uninstalling twice does not say so: $(cat "$work/output")"
    say "installed, upgraded, uninstalled: $what"
}

configurations() {
    local release
    for release in 1.6 1.7 2.1; do
        new_node "$release" <<<"$version2"
        once "$release" "format 2" other
        new_node "$release" <<<"imports = [] # none yet"$'\n'"$version2"
        once "$release" "format 2 with an empty imports" other
        new_node "$release" </dev/null
        once "$release" "no configuration file" ""
    done
    new_node 2.1 <<<"$version3"
    once 2.1 "format 3" other
    for release in 1.7 2.1; do
        new_node "$release" <<<"imports = ['/etc/containerd/conf.d/*.toml']"$'\n'"$version2"
        mkdir "$root/etc/containerd/conf.d"
        printf 'version = 2\n[debug]\n  level = "warn"\n' >"$root/etc/containerd/conf.d/debug.toml"
        once "$release" "a directory that is imported already" other
    done
}

# A change of the administrator's between install and uninstall stays.
administrator() {
    local file=$root/etc/containerd/config.toml
    new_node 1.7 <<<"$version2"
    cp "$file" "$work/original"
    succeeds install
    sed -i 's/oom_score = -999/oom_score = -998/; s|^imports = \[|imports = ["/etc/mine.toml", |' "$file"
    printf 'version = 2\n' >"$root/etc/mine.toml"
    sed -i 's/SystemdCgroup = true/SystemdCgroup = false/' "$file"
    # containerd 1.x does not see it until the drop-in is written anew.
    has 'SystemdCgroup = true' "before the drop-in was written anew"
    succeeds install
    has 'SystemdCgroup = false' "the drop-in was not written anew"
    [ "$(restarts)" = 2 ] || fail "the new drop-in did not restart containerd"
    succeeds uninstall
    [ "$(grep -cx -e 'oom_score = -998' -e 'imports = \["/etc/mine.toml"\]' "$file")" = 2 ] ||
        fail "a change of the administrator's is lost: $(head -n 5 "$file")"
    say "what the administrator changed meanwhile stays"
}

refusals() {
    local file=$root/etc/containerd/config.toml
    new_node 1.7 <<<"$version2"
    snapshot >"$work/before"
    refuses "usage: kata-deploy" frobnicate
    refuses "nothing is installed" check
    KATA_RUNTIMES='kata Kata' refuses "Kata is no name of a runtime" install
    KATA_RUNTIMES=other refuses "defines the runtime other already" install
    KATA_ARTIFACTS=/nonexistent refuses "this is no complete product" install
    KATA_FLAVOUR=docker refuses "containerd, k3s or rke2 is expected" install
    KATA_CTR=no-ctr refuses "the node has no program no-ctr" install
    KATA_CONTAINERD_SOCKET=/run/none.sock KATA_DEADLINE=1 refuses "containerd did not work before anything was changed" install
    touch "$work/api/refuse"
    refuses "must be allowed to patch nodes" install
    rm "$work/api/refuse"
    same "$work/before" "after the API server refused the label"
    touch "$root/run/broken"
    refuses "containerd does not come back with the new configuration" install
    same "$work/before" "after containerd did not start"
    wait_for_containerd
    mkdir "$root/opt/kata"
    refuses "is there and not from kata-deploy" install
    rmdir "$root/opt/kata"
    mv "$root/usr/bin/qemu-system-x86_64" "$root/usr/bin/moved"
    refuses "there is no QEMU" install
    mv "$root/usr/bin/moved" "$root/usr/bin/qemu-system-x86_64"
    flock --no-fork "$root/opt" sleep 100 &
    sleep 0.5
    refuses "another kata-deploy is at work" install
    kill $!
    wait $! 2>/dev/null || :
    same "$work/before" "after refusals"
    # These change the node's own file, so they come last.
    sed -i '1i imports = [\n  "/etc/a.toml",\n]' "$file"
    snapshot >"$work/before"
    refuses "imports is not a plain list on one line" install
    same "$work/before" "after an imports on several lines"
    printf 'version = 2\nthis is no TOML\n' >"$file"
    snapshot >"$work/before"
    refuses "containerd does not understand" install
    same "$work/before" "after a configuration that is no TOML"
    sed -i 's/.*/disabled_plugins = []/;1!d' "$file"
    snapshot >"$work/before"
    refuses "is of format 1" install
    same "$work/before" "after a configuration of format 1"
    say "refused in words, with the node as it was"
}

# The DaemonSet's process: it stays when only the pod goes, and uninstalls when the DaemonSet goes.
daemonset() {
    local pid status
    new_node 1.7 <<<"$version2"
    snapshot >"$work/before"
    for state in there going ""; do
        printf '%s' "$state" >"$work/api/daemonset"
        # Not by the process that is begun: until it has, the last one's words are there.
        : >"$work/output"
        "$here/kata-deploy.sh" run >>"$work/output" 2>&1 &
        pid=$!
        until grep -q 'waiting until the DaemonSet is removed' "$work/output"; do
            # Its own deadlines end it.
            kill -0 "$pid" 2>/dev/null || fail "kata-deploy run ended: $(cat "$work/output")"
            sleep 0.05
        done
        succeeds_beside check
        sleep 0.2
        kill -TERM "$pid"
        status=0
        wait "$pid" || status=$?
        [ "$status" = 0 ] || fail "kata-deploy run ended with $status: $(cat "$work/output")"
        if [ "$state" = there ]; then
            grep -q 'everything stays installed' "$work/output" || fail "the pod did not say that everything stays: $(cat "$work/output")"
            succeeds check
        else
            same "$work/before" "after the DaemonSet was removed (${state:-gone})"
        fi
    done
    # The hook of the chart: what deletes it sees it go.
    printf there >"$work/api/daemonset"
    (sleep 3 && rm "$work/api/daemonset") &
    succeeds remove-daemonset
    grep -q 'DELETE .*propagationPolicy=Foreground' "$work/api/requests" || fail "the DaemonSet was not deleted in the foreground"
    say "the DaemonSet's pod stays, or uninstalls when the DaemonSet goes"
}

succeeds_beside() { "$here/kata-deploy.sh" "$@" >"$work/beside" 2>&1 || fail "kata-deploy $* failed: $(cat "$work/beside")"; }

# faulty AT HOW ARGUMENTS...: runs kata-deploy, in which the program that it calls as the AT-th fails, or it is killed there.
faulty() {
    local fault=$work/fault at=$1 how=$2 name status=0
    shift 2
    rm -rf "$fault"
    mkdir -p "$fault/bin"
    for name in awk cat chmod chroot cmp cp curl cut diff dirname find flock grep head install id ln mkdir mktemp mv readlink rm rmdir \
        sed sha256sum sort stat sync tac tail timeout touch tr; do
        ln -s "$here/fault.sh" "$fault/bin/$name"
    done
    FAULT_DIR=$fault FAULT_AT=$at FAULT_HOW=$how PATH=$fault/bin:$PATH /bin/sh -c \
        'echo $$ >"$FAULT_DIR/pid" && exec /bin/bash "$@"' - "$here/kata-deploy.sh" "$@" >"$work/output" 2>&1 || status=$?
    return "$status"
}

# each_fault HOW STEP ARGUMENTS...: from state WORK/from to state WORK/to; every STEP-th call.
each_fault() {
    local how=$1 step=$2 at=${KATA_FAULT_FIRST:-1} done_and=0 undone=0 status
    shift 2
    while :; do
        status=0
        faulty "$at" "$how" "$@" || status=$?
        [ -e "$work/fault/done" ] || break
        if [ "$how" = kill ]; then
            # Its child may not have ended yet.
            deploy recover || fail "after a kill at call $at ($(cat "$work/fault/done")) kata-deploy recover failed: $(cat "$work/output")"
            snapshot x >"$work/now"
            if cmp -s "$work/now" "$work/to"; then status=0; else status=1; fi
        elif [ "$status" != 0 ]; then
            grep -q 'error: ' "$work/output" || fail "call $at ($(cat "$work/fault/done")) failed without a word: $(cat "$work/output")"
        fi
        if [ "$status" = 0 ]; then
            # What fails after the change counts is cleared away by the next call.
            succeeds recover
            same "$work/to" "after call $at ($(cat "$work/fault/done")), $how" x
            done_and=$((done_and + 1))
            "$back"
        else
            undone=$((undone + 1))
        fi
        same "$work/from" "after call $at ($(cat "$work/fault/done")), $how" x
        at=$((at + step))
    done
    [ "$undone" -gt 0 ] || fail "$*, $how: only $undone of $at calls could be made to fail; the test tests nothing"
    "$back"
    wait_for_containerd
    say "$* of containerd $release: $how at every ${step}. call of $at: $undone times undone, $done_and times done nevertheless"
}

# What can fail is the same with every containerd, but for the drop-in's text.
faults() {
    faults_of 1.7 "${KATA_FAULT_STEP:-5}"
    faults_of 2.1 "$((${KATA_FAULT_STEP:-5} * 3))"
}

faults_of() {
    local release=$1 step=$2 how
    new_node "$release" <<<"$version2"
    snapshot x >"$work/before"
    succeeds install
    snapshot x >"$work/installed"
    succeeds uninstall
    for how in fail kill; do
        cp "$work/before" "$work/from"
        cp "$work/installed" "$work/to"
        back=uninstalled
        each_fault "$how" "$step" install
        succeeds install
        cp "$work/installed" "$work/from"
        cp "$work/before" "$work/to"
        back=installed
        each_fault "$how" "$step" uninstall
        succeeds uninstall
    done
}
uninstalled() { succeeds uninstall; }
installed() { succeeds install; }

# The image's own programs do the same in a container's place: its root, with the node's below /host.
image() {
    new_node 1.7 <<<"$version2"
    snapshot >"$work/before"
    mount --bind "$work/unpacked" "$work/unpacked"
    mount -t proc proc "$work/unpacked/proc"
    mount --rbind /dev "$work/unpacked/dev"
    mkdir -p "$work/unpacked/host" "$work/unpacked/var/run/secrets/kubernetes.io/serviceaccount"
    mount --rbind "$root" "$work/unpacked/host"
    mount --bind "$work/api" "$work/unpacked/var/run/secrets/kubernetes.io/serviceaccount"
    for verb in install check uninstall; do
        env -i KATA_RESTART=restart-containerd NODE_NAME=checked KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT=6443 \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin KATA_HOST=/host \
            chroot "$work/unpacked" kata-deploy "$verb" >"$work/output" 2>&1 || fail "in the image: kata-deploy $verb: $(cat "$work/output")"
        grep 'kata-deploy: \(un\)\?installed' "$work/output" || fail "in the image: kata-deploy $verb said: $(cat "$work/output")"
    done
    same "$work/before" "after installing and uninstalling from the image"
    cp "$work/image/kata-deploy.tar" "$root/run"
    chroot "$root" ctr images import /run/kata-deploy.tar >"$work/output" 2>&1 || fail "containerd does not import the image: $(cat "$work/output")"
    chroot "$root" ctr images ls -q | grep -q '^kata-deploy:' || fail "containerd has imported the image under another name: $(cat "$work/output")"
    say "containerd imports the image, and its programs install and uninstall"
    umount --recursive --lazy "$work/unpacked"
}

mkdir -p "$work/node" "$root" "$work/api" "$work/tmp"
mount -t tmpfs kata-node-test "$work/tmp"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=checked -addext subjectAltName=IP:127.0.0.1 \
    -keyout "$work/api/key" -out "$work/api/ca.crt" 2>/dev/null
printf checked >"$work/api/token"
rm -f "$work/api/ready"
python3 "$here/apiserver.py" "$work/api" &
# shellcheck disable=SC2016 # the $ is the inner shell's
timeout 30 sh -c 'until [ -e "$1" ]; do sleep 0.05; done' - "$work/api/ready" || fail "the API server of the test does not start"
mkdir -p "$work/product"
cp -a "$stage/bin" "$stage/share" "$work/product"
# Without the trimmed QEMU that may have been built: the node has one, and what happens without any is tried.
shift
[ $# != 0 ] || set -- configurations administrator refusals daemonset faults
for part; do
    case $part in configurations | administrator | refusals | daemonset | faults | image) "$part" ;; *) fail "$part is no part of this test" ;; esac
done
end_node
