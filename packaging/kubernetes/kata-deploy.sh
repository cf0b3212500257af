#!/usr/bin/env bash
# Installs the product on a node and configures its containerd; removes it again without a trace.
# docs/kubernetes.md explains it. It is shipped in the installer's image and in the product, so it needs nothing but itself,
# coreutils, findutils, grep, sed, awk, util-linux, and curl when it runs in a cluster.
#
# Every change of the node is written into a journal before it is made. Whatever fails, is interrupted or killed, the journal is
# undone, backwards: at once, or else by the next call.
set -eEuo pipefail
shopt -s inherit_errexit

usage='usage: kata-deploy install | uninstall [--force] | check | recover | run | remove-daemonset'

# Settings. The DaemonSet and the Helm chart give them as environment variables.
host=${KATA_HOST:-/}
artifacts=${KATA_ARTIFACTS:-/opt/kata-artifacts}
runtimes=${KATA_RUNTIMES:-kata kata-qemu}
debug=${KATA_DEBUG:-false}
deadline=${KATA_DEADLINE:-120}
node=${NODE_NAME:-}
label=katacontainers.io/kata-runtime
case ${KATA_FLAVOUR:-containerd} in
containerd)
    config=/etc/containerd/config.toml drop_in_dir=/etc/containerd/conf.d socket=/run/containerd/containerd.sock
    containerd=containerd ctr=ctr restart='systemctl restart containerd'
    ;;
k3s | rke2)
    # Their main file is generated at every start and imports this directory; the unit is that of a server or of an agent.
    config=/var/lib/rancher/$KATA_FLAVOUR/agent/etc/containerd/config.toml
    drop_in_dir=/var/lib/rancher/$KATA_FLAVOUR/agent/etc/containerd/config-v3.toml.d
    socket=/run/k3s/containerd/containerd.sock
    containerd=/var/lib/rancher/$KATA_FLAVOUR/data/current/bin/containerd
    ctr=/var/lib/rancher/$KATA_FLAVOUR/data/current/bin/ctr
    [ "$KATA_FLAVOUR" = k3s ] || containerd=/var/lib/rancher/rke2/bin/containerd ctr=/var/lib/rancher/rke2/bin/ctr
    restart="systemctl try-restart $KATA_FLAVOUR $KATA_FLAVOUR-agent $KATA_FLAVOUR-server"
    ;;
*)
    echo "error: KATA_FLAVOUR=$KATA_FLAVOUR: containerd, k3s or rke2 is expected" >&2
    exit 1
    ;;
esac
config=${KATA_CONTAINERD_CONFIG:-$config}
drop_in_dir=${KATA_CONTAINERD_DROP_IN_DIR:-$drop_in_dir}
socket=${KATA_CONTAINERD_SOCKET:-$socket}
containerd=${KATA_CONTAINERD:-$containerd}
ctr=${KATA_CTR:-$ctr}
restart=${KATA_RESTART:-$restart}

# Where things are on the node.
link=/opt/kata
versions=/opt/kata-versions
state=/var/lib/kata-deploy
# Without another program's files: an import of the whole directory would also switch on what others have put there.
name_drop_in() { import="$drop_in_dir/kata-*.toml" drop_in=$drop_in_dir/kata-containers.toml; }
name_drop_in

say() { printf '%s\n' "kata-deploy: $*"; }
fail() {
    printf '%s\n' "kata-deploy: error: $*" >&2
    exit 1
}

# A path of the node as this process sees it.
root=${host%/}
at() { printf '%s' "$root$1"; }

# Runs a program of the node's, in its root. systemctl would do nothing in what it takes for a chroot. Nothing that is
# started keeps the lock.
host_command=(chroot "${root:-/}" /usr/bin/env -i LC_ALL=C SYSTEMD_IGNORE_CHROOT=1
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
on_host() { "${host_command[@]}" "$@" 9<&-; }

# ---- The journal -------------------------------------------------------------------------------------------------------

# note KIND PATH [MORE]: what is about to be changed, in words that `undo` understands.
note() {
    printf '%s\t%s\t%s\n' "$1" "$2" "${3:-}" >>"$journal"
    sync "$journal"
}

begin() {
    changing=1
    make_directory "$state"
    : >"$journal"
    # The lock is held, so what lies here is of a run that has ended.
    rm -rf "$(at "$state/backup")"
    mkdir "$(at "$state/backup")"
}

# The state directory holds the journal, so it cannot be noted there; `finish` removes it when it holds nothing more.
make_directory() {
    [ -d "$(at "$1")" ] || mkdir -m 755 "$(at "$1")"
}

# made DIRECTORY: makes a directory that is removed again by undo and by uninstall.
made() {
    [ ! -d "$(at "$1")" ] || return 0
    note made "$1"
    make_directory "$1"
    made_directories+=" $1"
}

# replace PATH: the new content is standard input. Mode and owner stay; a reader sees the old file or the new one.
replace() {
    local path=$1 new
    new=$(at "$path").kata-new
    cat >"$work/content"
    ! cmp -s "$work/content" "$(at "$path")" || return 0
    note created "$path.kata-new"
    if [ -e "$(at "$path")" ]; then
        cp -p "$(at "$path")" "$new"
    else
        : >"$new"
        chmod 644 "$new"
    fi
    cat "$work/content" >"$new"
    keep "$path"
    mv -T "$new" "$(at "$path")"
}

# keep PATH: keeps what is there now, or that nothing is, for undo.
keep() {
    local path=$1 backup=
    if [ -e "$(at "$path")" ]; then
        backups=$((${backups:-0} + 1))
        backup=$state/backup/$backups
        cp -p "$(at "$path")" "$(at "$backup")"
    fi
    note changed "$path" "$backup"
}

# point TARGET: lets the link to the product point to TARGET, or removes it if TARGET is empty.
point() {
    local old=
    [ ! -L "$(at "$link")" ] || old=$(readlink "$(at "$link")")
    note linked "$link" "$old"
    set_link "$1"
}

set_link() {
    if [ -n "$1" ]; then
        ln -sfn "$1" "$(at "$link").kata-new"
        mv -T "$(at "$link").kata-new" "$(at "$link")"
    else
        rm -f "$(at "$link")"
    fi
}

# Undoes one line of the journal. All of it may have been undone before, or never been done.
undo() {
    local kind=$1 path=$2 more=$3
    case $kind in
    made) [ ! -d "$(at "$path")" ] || rmdir --ignore-fail-on-non-empty "$(at "$path")" ;;
    created) rm -rf "$(at "$path")" ;;
    changed)
        if [ -z "$more" ]; then
            rm -f "$(at "$path")"
        else
            cp -p "$(at "$more")" "$(at "$path").kata-new" && mv -T "$(at "$path").kata-new" "$(at "$path")"
        fi
        ;;
    linked) rm -f "$(at "$path").kata-new" && set_link "$more" ;;
    restarted) undo_restart=1 ;;
    label-refused) label_kept=1 ;;
    labelled) [ -n "$label_kept" ] || undo_label=$more ;;
    *) false ;;
    esac
}

# Undoes the journal. Goes on where something cannot be undone; the journal then stays for another attempt.
roll_back() {
    local kind path more complete=1 undo_restart='' undo_label=- label_kept=''
    changing=
    say "undoing what was changed"
    rm -f "$(at "$state/remove")"
    # A tab would be taken for white space, and an empty field lost.
    if ! tac "$journal" | tr '\t' '\037' >"$work/undo"; then
        say "$journal cannot be read: repair that, then kata-deploy recover"
        return 1
    fi
    while IFS=$'\x1f' read -r kind path more; do
        undo "$kind" "$path" "$more" || {
            say "cannot undo: $kind $path $more"
            complete=
        }
    done <"$work/undo"
    [ -z "$undo_restart" ] || restart_containerd || {
        say "containerd does not answer with its previous configuration either; see journalctl -u containerd"
        complete=
    }
    [ "$undo_label" = - ] || set_label "$undo_label" || {
        say "the node's label $label could not be set back"
        complete=
    }
    if [ -z "$complete" ]; then
        say "the node is not as it was; $state/journal says what is left to undo: repair what is named above, then kata-deploy recover"
        return 1
    fi
    rm -f "$journal"
    finish
    say "everything is as it was before"
}

# Removes what a finished change no longer needs. Nothing here may fail it: it is tried again by the next call.
finish() {
    local path
    if [ -e "$(at "$state/remove")" ]; then
        while read -r path; do
            if [ -d "$(at "$path")" ] && [ "${path#"$versions"/}" = "$path" ]; then
                rmdir --ignore-fail-on-non-empty "$(at "$path")" || return 0; [ ! -d "$(at "$path")" ] || say "$path stays: it has files"
            else
                rm -rf "$(at "$path")" || return 0
            fi
        done <"$(at "$state/remove")"
        rm -f "$(at "$state/remove")" || return 0
    fi
    rm -rf "$(at "$state/backup")" || return 0
    [ -e "$(at "$state/installed")" ] || [ ! -d "$(at "$state")" ] || rmdir "$(at "$state")" || return 0
}

# commit PATHS: the change counts from the moment on that the journal is gone. What it makes superfluous is given as lines.
commit() {
    sed '/^$/d' <<<"$1" >"$(at "$state/remove")"
    rm "$journal"
    changing=
    finish
}

recover() {
    if [ -e "$journal" ]; then
        say "an earlier run was interrupted"
        roll_back || exit 1
    elif [ -d "$(at "$state")" ]; then
        finish
    fi
}

# ---- containerd --------------------------------------------------------------------------------------------------------

# What containerd says of its plugins; waits for at most the deadline until the CRI plugin is there.
containerd_answers() {
    local until=$((SECONDS + deadline)) output
    while :; do
        output=$(timeout 20 "${host_command[@]}" "$ctr" --address "$socket" plugins ls 2>&1 9<&-) || :
        if grep -qE '^io\.containerd\.grpc\.v1 +cri +.* ok *$' <<<"$output"; then
            return 0
        fi
        if [ "$SECONDS" -ge "$until" ]; then
            say "waited ${deadline} s for containerd's CRI plugin on $socket; the last answer of \`$ctr plugins ls\`:"
            grep -E ' cri |rror|ctr:' <<<"$output" | head -n 5
            return 1
        fi
        sleep 0.5
    done
}

restart_containerd() {
    say "restarting containerd: $restart"
    # shellcheck disable=SC2086 # the setting is a command line
    timeout "$deadline" "${host_command[@]}" $restart 9<&- || {
        say "\`$restart\` failed"
        return 1
    }
    containerd_answers
}

# dump FILE: the configuration that containerd makes of a file.
dump() { on_host "$containerd" --config "$1" config dump 2>"$work/dump.err"; }

# The configuration's format. Without the line it is 1, which no Kubernetes of the last years uses.
format_of() { sed -n '/^ *\[/q; s/^ *version *= *\([0-9]*\).*/\1/p' "$1" | head -n 1; }

# The line number of `imports`. Only what precedes the first table is containerd's own.
imports_line() { awk '/^[ \t]*\[/ { exit } /^[ \t]*imports[ \t]*=/ { print NR; exit }' "$1"; }

# The line itself, and its elements, one a line.
import_text() {
    local number
    number=$(imports_line "$1")
    [ -z "$number" ] || sed -n "${number}p" "$1"
}
imports_of() {
    import_text "$1" | grep -oE "\"[^\"]*\"|'[^']*'" | sed -E "s/^.|.\$//g" || :
}

# Refuses an `imports` that this script could not set back.
check_imports() {
    [ -z "$(imports_line "$1")" ] || import_text "$1" | grep -qE '^[^]#[]*\[[^]#[]*\][ \t]*(#.*)?$' ||
        fail "$config: imports is not a plain list on one line; make it one, or add \"$import\" to it by hand"
}

# with_import FILE ELEMENT: the file with one more import. Everything but that line stays.
with_import() {
    local number version
    number=$(imports_line "$1")
    if [ -n "$number" ]; then
        sed -E "${number}{s|\[[ \t]*\]|[\"$2\"]|;t;s|[ \t]*,?[ \t]*\]|, \"$2\"]|}" "$1"
    else
        version=$(awk '/^[ \t]*version[ \t]*=/ { print NR; exit }' "$1")
        # After the version, because a text editor's eye looks for it there.
        sed "${version}a imports = [\"$2\"]" "$1"
    fi
}

# without_own_import FILE: the file as if nothing imported our drop-in, each pattern as the files that it stands for now.
without_own_import() {
    local number element file list=()
    number=$(imports_line "$1")
    [ -n "$number" ] || {
        cat "$1"
        return
    }
    while read -r element; do
        [[ $element = /* ]] || element=$(dirname "$config")/$element
        while read -r file; do
            file=${file#"$root"}
            [ "$file" = "$drop_in" ] || list+=("\"$file\"")
        done < <(compgen -G "$(at "$element")" || :)
    done < <(imports_of "$1")
    element=$(IFS=, && printf '%s' "${list[*]}")
    sed "${number}s|.*|imports = [$element]|" "$1"
}

# Leaves out of a dump what an installation may change: the imports, and the tables of the runtimes.
comparable() {
    awk -v names=" $runtimes ${installed_runtimes:-} " '
        /^[ \t]*\[/ {
            ours = 0
            if (match($0, /\.containerd\.runtimes\.[^].]+/)) {
                name = substr($0, RSTART, RLENGTH)
                sub(/.*\./, "", name)
                gsub(/["\x27]/, "", name)
                ours = index(names, " " name " ") > 0
            }
        }
        ours || /^[ \t]*imports[ \t]*=/ || /^[ \t]*$/ { next }
        { print }'
}

# The CRI plugin's tables of a dump of containerd 1.x.
cri_tables() {
    awk '/^[ \t]*\[/ { cri = ($0 ~ /^[ \t]*\[plugins\."io\.containerd\.grpc\.v1\.cri"[].]/) } cri { print }'
}

has_runtime() { grep -qE "^[ \t]*\[plugins\..*\.containerd\.runtimes\.[\"']?$1[\"']?\]" "$2"; }

# The drop-in's text. With a dump as the first argument all of its CRI tables come before ours: containerd 1.x replaces a
# plugin's whole configuration by that of an imported file, so what is not repeated would be lost.
drop_in_text() {
    local name plugin='"io.containerd.grpc.v1.cri"'
    [ "$format" != 3 ] || plugin="'io.containerd.cri.v1.runtime'"
    printf '# Written by kata-deploy, which replaces and removes this file. Changes belong into %s.\n' "$config"
    [ -z "$1" ] || printf '# It repeats the CRI settings as they were, because containerd 1.x takes them from one file only: after a\n# change of them run kata-deploy install again.\n'
    printf 'version = %s\n' "$format"
    [ -z "$1" ] || cri_tables <"$1"
    for name in $runtimes; do
        printf '\n[plugins.%s.containerd.runtimes.%s]\n' "$plugin" "$name"
        printf '  runtime_type = "io.containerd.kata.v2"\n  runtime_path = "%s/bin/containerd-shim-kata-v2"\n' "$link"
        # A privileged container gets no device of the host's: they mean nothing in the guest.
        printf '  privileged_without_host_devices = true\n'
        printf '  pod_annotations = ["io.katacontainers.*"]\n  container_annotations = ["io.katacontainers.*"]\n'
    done
}

# expect_same DUMP: whether a configuration is the one without us and our runtimes, and nothing else.
expect_same() {
    local name
    for name in $runtimes; do
        has_runtime "$name" "$1" || {
            printf 'the runtime %s is not there\n' "$name"
            return 1
        }
    done
    comparable <"$work/base" >"$work/base.lines"
    comparable <"$1" >"$work/new.lines"
    diff "$work/base.lines" "$work/new.lines"
}

# Makes the drop-in's text in WORK/drop-in and proves it on a copy of the main file beside it, before anything of the
# node's is changed.
prove() {
    local way difference copy=$config.kata-check proof=$state/kata-containers.toml
    note created "$copy"
    note created "$proof"
    say "checking the new configuration with $(on_host "$containerd" --version | cut -d' ' -f2,3)"
    for way in "" "$work/base"; do
        drop_in_text "$way" >"$work/drop-in"
        cat "$work/drop-in" >"$(at "$proof")"
        with_import "$work/own" "$proof" >"$(at "$copy")"
        if ! dump "$copy" >"$work/proof"; then
            difference=$(cat "$work/dump.err")
        elif difference=$(expect_same "$work/proof"); then
            rm "$(at "$proof")" "$(at "$copy")"
            return
        fi
    done
    fail "containerd would not take the drop-in as it is meant: $difference"
}

# ---- Kubernetes --------------------------------------------------------------------------------------------------------

# api METHOD PATH [BODY]: one request to the API server; its answer is the output, its status the last line.
api() {
    local account=/var/run/secrets/kubernetes.io/serviceaccount name=${KUBERNETES_SERVICE_HOST:-}
    account=${KATA_SERVICE_ACCOUNT:-$account}
    [ -n "$name" ] || {
        say "KUBERNETES_SERVICE_HOST is not set: this runs in no cluster" >&2
        return 1
    }
    [[ $name != *:* ]] || name="[$name]"
    # The token is read from a pipe, so that no process list shows it.
    curl --silent --show-error --max-time 30 --request "$1" --cacert "$account/ca.crt" --write-out '\n%{http_code}' \
        --config <(printf 'header = "Authorization: Bearer %s"\n' "$(<"$account/token")") \
        ${3:+--header 'Content-Type: application/merge-patch+json' --data "$3"} \
        "https://$name:${KUBERNETES_SERVICE_PORT:-443}$2"
}

# set_label VALUE: labels the node; an empty value removes the label.
set_label() {
    local value=null answer
    [ -z "$1" ] || value="\"$1\""
    if [ -z "$node" ]; then
        say "NODE_NAME is not set, so the node's label is yours to change: kubectl label node NODE $label${1:+=$1}$([ -n "$1" ] || printf -- -)"
        return 0
    fi
    answer=$(api PATCH "/api/v1/nodes/$node" "{\"metadata\":{\"labels\":{\"$label\":$value}}}") || return 1
    [ "${answer##*$'\n'}" = 200 ] || {
        say "the API server refused to change the label $label of node $node: $answer"
        [ -z "$changing" ] || note label-refused "$node"
        return 1
    }
}

# Whether the DaemonSet that this pod is of is being removed, and not just this pod.
daemonset_goes() {
    local answer
    answer=$(api GET "/apis/apps/v1/namespaces/$KATA_NAMESPACE/daemonsets/$KATA_DAEMONSET") || return 1
    case ${answer##*$'\n'} in
    404) ;;
    200) grep -q '"deletionTimestamp":' <<<"$answer" ;;
    *)
        say "the API server does not tell whether $KATA_DAEMONSET is being removed, so everything stays installed: $answer"
        return 1
        ;;
    esac
}

# Deletes the DaemonSet and waits until its pods have uninstalled everywhere: what a Helm hook runs before the rest goes.
remove_daemonset() {
    local path answer until=$((SECONDS + ${KATA_REMOVE_DEADLINE:-900}))
    path=/apis/apps/v1/namespaces/${KATA_NAMESPACE:?}/daemonsets/${KATA_DAEMONSET:?}
    answer=$(api DELETE "$path?propagationPolicy=Foreground")
    case ${answer##*$'\n'} in
    200 | 202 | 404) ;;
    *) fail "the API server refused to delete the DaemonSet $KATA_DAEMONSET: $answer" ;;
    esac
    say "waiting for the DaemonSet $KATA_DAEMONSET to uninstall from all nodes"
    while :; do
        # A node's containerd that restarts may take the API server with it for a moment.
        answer=$(api GET "$path") || answer=unreachable
        [ "${answer##*$'\n'}" != 404 ] || return 0
        [ "$SECONDS" -lt "$until" ] || fail "the DaemonSet $KATA_DAEMONSET is still there; look at the logs of its pods: kubectl -n $KATA_NAMESPACE logs -l name=$KATA_DAEMONSET"
        sleep 2
    done
}

# ---- The product -------------------------------------------------------------------------------------------------------

check_artifacts() {
    local file share=share/kata-containers
    for file in bin/kata-runtime bin/containerd-shim-kata-v2 "$share/vmlinux.container"; do
        [ -e "$artifacts/$file" ] || fail "$artifacts/$file does not exist: this is no complete product"
    done
    [ -e "$artifacts/$share/kata-containers-initrd.img" ] || [ -e "$artifacts/$share/kata-containers.img" ] ||
        fail "$artifacts/$share holds no guest image: kata-containers-initrd.img or kata-containers.img is expected"
    compgen -G "$artifacts/lib/kata-containers/qemu*/bin/qemu-system-*" >/dev/null ||
        on_host sh -c "command -v qemu-system-$(uname -m)" >/dev/null ||
        fail "there is no QEMU: neither does the product bring one (make qemu) nor has the node qemu-system-$(uname -m)"
}

# Names a product by its content, so that one that is there already need not be copied.
digest() {
    {
        find "$artifacts" -printf '%P %y %m %l\n' | LC_ALL=C sort
        find "$artifacts" -type f -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
        printf '%s\n' "$debug"
        sha256sum <"$0"
    } | sha256sum | cut -c1-16
}

# Puts the product into a directory of its own. Pods that run keep theirs.
put_product() {
    local place=$versions/$id
    [ ! -d "$(at "$place")" ] || return 0
    say "copying the product to $place"
    made "$versions"
    note created "$place.new"
    note created "$place"
    rm -rf "$(at "$place.new")"
    mkdir "$(at "$place.new")"
    cp -dR --preserve=mode "$artifacts/." "$(at "$place.new")"
    install -m 755 "$0" "$(at "$place.new/bin/kata-deploy")"
    if [ "$debug" = true ]; then
        mkdir -p "$(at "$place.new/share/defaults/kata-containers")"
        printf '[hypervisor.qemu]\nenable_debug = true\n\n[agent.kata]\nenable_debug = true\n\n[runtime]\nenable_debug = true\n' \
            >"$(at "$place.new/share/defaults/kata-containers/configuration.toml")"
    fi
    on_host "$place.new/bin/kata-runtime" --version >"$work/version" 2>&1 ||
        fail "the node cannot run $place.new/bin/kata-runtime: $(cat "$work/version")"
    sync -f "$(at "$place.new")"
    mv -T "$(at "$place.new")" "$(at "$place")"
}

# The versions that processes of the node still use.
used_versions() {
    local target
    for target in /proc/[0-9]*/exe; do
        target=$(readlink "$target" 2>/dev/null) || continue
        [[ $target = *"$versions"/*/* ]] || continue
        target=${target#*"$versions"/}
        printf '%s\n' "$versions/${target%%/*}"
    done | sort -u
}

# old_versions KEPT [USED]: the other versions, but for those that are used.
old_versions() {
    local path used=${2:-}
    for path in "$(at "$versions")"/*; do
        path=${path#"$root"}
        [ "$path" = "$versions/$1" ] || [ ! -e "$(at "$path")" ] || grep -qxF "$path" <<<"$used" || printf '%s\n' "$path"
    done
}

# ---- What can be asked for ---------------------------------------------------------------------------------------------

# Reads what an earlier installation noted: variables of the names below, each a line NAME<tab>VALUE.
read_installed() {
    local name value
    installed_id='' installed_runtimes='' made_directories='' import_line='' import_was='' config_created='' config_time='' config_sum=''
    [ -e "$(at "$state/installed")" ] || return 1
    while IFS=$'\t' read -r name value; do
        case $name in
        installed_id | installed_runtimes | made_directories | import_line | import_was | config_created | config_time | config_sum)
            printf -v "$name" %s "$value"
            ;;
        esac
    done <"$(at "$state/installed")"
}

write_installed() {
    printf '%s\t%s\n' installed_id "$id" installed_runtimes "$runtimes" made_directories "$made_directories" \
        import_line "$import_line" import_was "$import_was" config_created "$config_created" config_time "$config_time" \
        config_sum "$config_sum" | replace "$state/installed"
}

# own_config: the main file without our import line, in WORK/main; empty if there is no such file or it is ours.
own_config() {
    local number
    : >"$work/main"
    [ ! -e "$(at "$config")" ] || cat "$(at "$config")" >"$work/main"
    [ -n "$import_line" ] || return 0
    number=$(LINE=$import_line awk '$0 == ENVIRON["LINE"] { print NR; exit }' "$work/main")
    if [ -n "$number" ] && [ -n "$import_was" ]; then
        awk -v n="$number" 'NR == n { exit } { print }' "$work/main" >"$work/main.new"
        printf '%s\n' "$import_was" >>"$work/main.new"
        tail -n +"$((number + 1))" "$work/main" >>"$work/main.new"
        mv "$work/main.new" "$work/main"
    elif [ -n "$number" ]; then
        sed -i "${number}d" "$work/main"
    else
        # Somebody has changed that line since. Only our element goes.
        number=$(imports_line "$work/main")
        [ -z "$number" ] || sed -i -E "${number}{s|, *[\"']${import//\*/\\*}[\"']||;s|[\"']${import//\*/\\*}[\"'] *,? *||}" "$work/main"
    fi
}

# What a change needs to know, and what must hold before it begins.
look() {
    local program
    [ "$(id -u)" = 0 ] || fail "this must be run as root"
    [ -d "$(at /opt)" ] || fail "$host holds no system: /opt is missing; KATA_HOST names the node's root"
    # A link that is absolute would lead out of the node's root.
    config=$(on_host readlink -m "$config")
    drop_in_dir=$(on_host readlink -m "$drop_in_dir")
    [ "$(on_host readlink -m "$versions" "$state")" = "$versions"$'\n'"$state" ] ||
        fail "/opt or /var/lib of the node is a symbolic link, which is not supported"
    name_drop_in
    exec 9<"$(at /opt)"
    flock -w 10 9 || fail "another kata-deploy is at work on this node; wait until it has ended"
    recover
    for program in "$containerd" "$ctr"; do
        on_host sh -c "command -v '$program'" >/dev/null || fail "the node has no program $program; KATA_CONTAINERD and KATA_CTR name them"
    done
    say "containerd: $config, $socket"
    containerd_answers || fail "containerd did not work before anything was changed, so nothing was changed"
    read_installed || :
}

# The configuration as it would be without us, in WORK/base; its source in WORK/own.
look_at_config() {
    own_config
    if [ ! -s "$work/main" ]; then
        # containerd's defaults, in the newest format that it knows.
        printf 'version = %s\n' "$(on_host "$containerd" config default | sed -n 's/^version *= *//p')" >"$work/main"
        format_default=1
    fi
    format=$(format_of "$work/main")
    case $format in
    2 | 3) ;;
    *) fail "$config is of format ${format:-1}: containerd config migrate makes a newer one of it; 2 or 3 is expected" ;;
    esac
    check_imports "$work/main"
    without_own_import "$work/main" >"$work/own"
    note created "$config.kata-check"
    cat "$work/own" >"$(at "$config.kata-check")"
    dump "$config.kata-check" >"$work/base" || fail "containerd does not understand $config as it is: $(cat "$work/dump.err")"
    rm "$(at "$config.kata-check")"
}

install_product() {
    local name old changed=''
    for name in $runtimes; do
        [[ $name =~ ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ ]] || fail "KATA_RUNTIMES: $name is no name of a runtime: lower-case letters, digits and - are expected"
    done
    check_artifacts
    look
    [ -L "$(at "$link")" ] || [ ! -e "$(at "$link")" ] || fail "$link is there and not from kata-deploy; remove that installation first"
    if [ -L "$(at "$link")" ] && [[ $(readlink "$(at "$link")") != kata-versions/* ]]; then
        fail "$link is a link that is not from kata-deploy; remove that installation first"
    fi
    id=$(digest)
    begin
    made "$(dirname "$config")"
    look_at_config
    for name in $runtimes; do
        ! has_runtime "$name" "$work/base" || fail "$config or what it imports defines the runtime $name already; remove that first"
    done
    put_product
    prove
    made "$drop_in_dir"
    if ! cmp -s "$work/drop-in" "$(at "$drop_in")"; then
        replace "$drop_in" <"$work/drop-in"
        changed=1
    fi
    if ! imports_of "$(at "$config")" 2>/dev/null | covers_drop_in; then
        # What is needed to set the file back exactly, also its time.
        config_created=${format_default:-} config_time='' config_sum=''
        [ -n "$config_created" ] || config_time=$(stat -c %y "$(at "$config")")
        with_import "$work/main" "$import" >"$work/main.new"
        import_line=$(import_text "$work/main.new")
        import_was=$(import_text "$work/main")
        replace "$config" <"$work/main.new"
        config_sum=$(sha256sum <"$(at "$config")" | cut -d' ' -f1)
        changed=1
    fi
    [ "$(readlink "$(at "$link")" || :)" = "kata-versions/$id" ] || point "kata-versions/$id"
    dump "$config" >"$work/live" || fail "containerd does not understand $config: $(cat "$work/dump.err")"
    expect_same "$work/live" >"$work/difference" || fail "containerd's configuration is not as meant: $(cat "$work/difference")"
    if [ -n "$changed" ]; then
        note restarted containerd
        restart_containerd || fail "containerd does not come back with the new configuration"
    fi
    write_installed
    note labelled "$node" "${installed_id:+true}"
    set_label true || fail "the node is not labelled; the service account must be allowed to patch nodes"
    old=$(old_versions "$id" "$(used_versions)")
    commit "$old"
    say "installed: $link -> kata-versions/$id, runtimes: $runtimes"
}

# Whether one of the patterns on standard input stands for our drop-in.
covers_drop_in() {
    local pattern
    while read -r pattern; do
        [[ $pattern = /* ]] || pattern=$(dirname "$config")/$pattern
        # shellcheck disable=SC2053 # a pattern is meant
        [[ $drop_in != $pattern ]] || return 0
    done
    return 1
}

uninstall_product() {
    local used old made
    look
    if [ -z "$installed_id" ]; then
        say "nothing is installed"
        return
    fi
    used=$(used_versions)
    if [ -n "$used" ] && [ "${1:-}" != --force ]; then
        fail "pods still run by it, and nobody could end them afterwards: processes use $used; delete those pods first, or give --force"
    fi
    begin
    note labelled "$node" true
    set_label "" || fail "the node's label could not be removed"
    own_config
    if [ -n "$config_created" ] && [ "$(sha256sum <"$(at "$config")" | cut -d' ' -f1)" = "$config_sum" ]; then
        keep "$config"
        rm "$(at "$config")"
    else
        replace "$config" <"$work/main"
        if [ -n "$config_time" ] && [ "$(with_import "$work/main" "$import" | sha256sum | cut -d' ' -f1)" = "$config_sum" ]; then
            touch -d "$config_time" "$(at "$config")"
        fi
    fi
    keep "$drop_in"
    rm -f "$(at "$drop_in")"
    if [ -e "$(at "$config")" ]; then
        dump "$config" >"$work/live" || fail "containerd does not understand $config without the drop-in: $(cat "$work/dump.err")"
    fi
    note restarted containerd
    restart_containerd || fail "containerd does not come back without the drop-in"
    point ""
    keep "$state/installed"
    rm "$(at "$state/installed")"
    # What was made last goes first.
    old=$(old_versions "")
    made=$(tr ' ' '\n' <<<"$made_directories" | tac)
    commit "$old"$'\n'"$made"
    say "uninstalled"
}

# Says whether the node is as an installation leaves it; changes nothing.
check() {
    local name
    [ "$(id -u)" = 0 ] || fail "this must be run as root"
    [ ! -e "$journal" ] || fail "an earlier run was interrupted: kata-deploy recover undoes it"
    read_installed || fail "nothing is installed"
    [ "$(readlink "$(at "$link")")" = "kata-versions/$installed_id" ] ||
        fail "$link does not point to kata-versions/$installed_id: run kata-deploy install"
    on_host "$link/bin/kata-runtime" --version >"$work/version" 2>&1 || fail "$link/bin/kata-runtime does not run: $(cat "$work/version")"
    dump "$config" >"$work/live" || fail "containerd does not understand $config: $(cat "$work/dump.err")"
    for name in $installed_runtimes; do
        has_runtime "$name" "$work/live" || fail "containerd's configuration has no runtime $name: run kata-deploy install"
    done
    containerd_answers || fail "containerd does not answer"
    say "installed: $link -> kata-versions/$installed_id, runtimes: $installed_runtimes"
}

# The DaemonSet's main process. Uninstalling answers the signal that ends the pod: a preStop hook would be cut off when
# containerd restarts, this process is not.
run_until_told() {
    install_product
    trap 'stop=1' TERM INT
    stop=
    exec 9<&-
    say "installed; waiting until the DaemonSet is removed"
    while [ -z "$stop" ]; do
        sleep infinity 9<&- &
        sleeper=$!
        wait "$sleeper" || :
    done
    kill "$sleeper" 2>/dev/null || :
    trap '' TERM INT
    if daemonset_goes; then
        uninstall_product
    else
        say "this pod ends, the DaemonSet stays: everything stays installed"
    fi
}

# shellcheck disable=SC2317 # called by the trap
ended() {
    local status=$?
    trap '' TERM INT HUP ERR
    set +e
    # Without a journal nothing has been changed yet, or the change counts already.
    [ -z "$changing" ] || if [ -e "$journal" ]; then roll_back; else finish; fi
    rm -rf "$work"
    exit "$status"
}

# Read to its end before it runs: it may remove its own file.
main() {
    trap 'say "error: line $LINENO: $BASH_COMMAND: failed" >&2' ERR
    work=$(mktemp -d)
    journal=$(at "$state/journal") changing=''
    trap ended EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
    trap 'exit 129' HUP
    case ${1:-} in
    install) install_product ;;
    uninstall)
        [ -z "${2:-}" ] || [ "$2" = --force ] || fail "$usage"
        uninstall_product "${2:-}"
        ;;
    check) check ;;
    recover)
        exec 9<"$(at /opt)"
        flock -w 10 9 || fail "another kata-deploy is at work on this node; wait until it has ended"
        recover
        ;;
    run) run_until_told ;;
    remove-daemonset) remove_daemonset ;;
    *) fail "$usage" ;;
    esac
    exit
}

main "$@"
