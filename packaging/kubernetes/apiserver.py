#!/usr/bin/env python3
"""As much of an API server as the checks need, on the loopback interface; nobody packages the real one.

Usage: apiserver.py DIRECTORY [SCHEMAS]

For kata-deploy: the labels of a node (DIRECTORY/labels, a line each) and a DaemonSet (DIRECTORY/daemonset: "there" or "going";
none: not found). It wants the token in DIRECTORY/token, and refuses with 403 while DIRECTORY/refuse exists.
For kubectl: discovery of the groups that the manifests use, and with SCHEMAS (a folder of kubernetes_validate) the OpenAPI
description, by which kubectl validates on the client's side before it would send anything.
It writes DIRECTORY/ready when it listens, and each request to DIRECTORY/requests.
"""

import http.server
import json
import os
import ssl
import sys

directory, schemas = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None

# group/version: kinds. kubectl finds out from this what a kind's address is.
GROUPS = {
    "v1": {"ServiceAccount": "serviceaccounts"},
    "apps/v1": {"DaemonSet": "daemonsets"},
    "batch/v1": {"Job": "jobs"},
    "node.k8s.io/v1": {"RuntimeClass": "runtimeclasses"},
    "rbac.authorization.k8s.io/v1": {
        "ClusterRole": "clusterroles",
        "ClusterRoleBinding": "clusterrolebindings",
        "Role": "roles",
        "RoleBinding": "rolebindings",
    },
}
CLUSTER_WIDE = {"RuntimeClass", "ClusterRole", "ClusterRoleBinding"}


def discovery(path):
    """The answer to a discovery request, or None."""
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        groups = []
        for name in GROUPS:
            if "/" in name:
                version = {"groupVersion": name, "version": name.split("/")[1]}
                groups.append({"name": name.split("/")[0], "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    name = path.removeprefix("/apis/").removeprefix("/api/")
    if name not in GROUPS:
        return None
    resources = [
        {"name": plural, "singularName": "", "kind": kind, "namespaced": kind not in CLUSTER_WIDE, "verbs": ["create", "get"]}
        for kind, plural in GROUPS[name].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": resources}


# kubectl reads the description as gnostic's protobuf messages (OpenAPIv2.proto); these few fields are what it looks at.
def field(number, data):
    """A field of bytes, text or an embedded message."""
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def schema(value):
    """A Schema message."""
    out = b""
    if "$ref" in value:
        out += field(1, "#/definitions/" + value["$ref"].rsplit("/", 1)[1])
    if "format" in value:
        out += field(2, value["format"])
    for name in value.get("required", []):
        out += field(19, name)
    if isinstance(value.get("additionalProperties"), dict):
        out += field(21, field(1, schema(value["additionalProperties"])))
    kind = value.get("type")
    if isinstance(kind, list):
        kind = next(name for name in kind if name != "null")
    if kind:
        out += field(22, field(1, kind))
    if "items" in value:
        out += field(23, field(1, schema(value["items"])))
    if "properties" in value:
        named = (field(1, name) + field(2, schema(inner)) for name, inner in value["properties"].items())
        out += field(25, b"".join(field(1, one) for one in named))
    for name in ("x-kubernetes-group-version-kind", "x-kubernetes-patch-merge-key", "x-kubernetes-patch-strategy"):
        if name in value:
            # A JSON text is a YAML text.
            out += field(31, field(1, name) + field(2, field(2, json.dumps(value[name]))))
    return out


def openapi():
    with open(os.path.join(schemas, "_definitions.json"), encoding="utf-8") as file:
        definitions = json.load(file)["$defs"]
    named = (field(1, name) + field(2, schema(value)) for name, value in definitions.items())
    return field(1, "2.0") + field(2, field(1, "Kubernetes") + field(2, "checks")) + field(8, b"") + field(9, b"".join(field(1, one) for one in named))


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body=None, kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body or {"kind": "Status", "code": status}).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self):
        path = self.path.split("?")[0]
        with open(f"{directory}/requests", "a", encoding="utf-8") as file:
            print(self.command, self.path, file=file)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = discovery(path)
        if self.command == "GET" and found:
            self.answer(200, found)
        elif path == "/openapi/v2" and schemas:
            self.answer(200, openapi(), "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        elif path.startswith("/openapi/"):
            self.answer(404)
        elif self.headers.get("Authorization") != "Bearer " + read("token"):
            self.answer(401)
        elif os.path.exists(f"{directory}/refuse"):
            self.answer(403)
        elif self.command == "PATCH" and path == "/api/v1/nodes/checked":
            self.patch(body)
        elif path == "/apis/apps/v1/namespaces/kube-system/daemonsets/kata-deploy":
            self.daemonset()
        else:
            self.answer(404)

    do_GET = do_PATCH = do_DELETE = do_POST = handle_request

    def patch(self, body):
        if self.headers.get("Content-Type") != "application/merge-patch+json":
            return self.answer(415)
        labels = dict(line.split("=") for line in read("labels").splitlines())
        for name, value in json.loads(body)["metadata"]["labels"].items():
            labels[name] = value
        with open(f"{directory}/labels", "w", encoding="utf-8") as file:
            file.writelines(f"{name}={value}\n" for name, value in labels.items() if value is not None)
        return self.answer(200, {"kind": "Node"})

    def daemonset(self):
        state = read("daemonset")
        metadata = {"name": "kata-deploy"}
        if state == "":
            return self.answer(404)
        if self.command == "DELETE":
            with open(f"{directory}/daemonset", "w", encoding="utf-8") as file:
                file.write("going")
        elif state == "going":
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        return self.answer(200, {"kind": "DaemonSet", "metadata": metadata})


def read(name):
    try:
        with open(f"{directory}/{name}", encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


server = http.server.ThreadingHTTPServer(("127.0.0.1", 6443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{directory}/ca.crt", f"{directory}/key")
server.socket = context.wrap_socket(server.socket, server_side=True)
with open(f"{directory}/ready", "w", encoding="utf-8"):
    pass
server.serve_forever()
