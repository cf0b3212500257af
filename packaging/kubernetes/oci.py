#!/usr/bin/env python3
"""Packs a directory as an OCI image of two layers (the system, and /opt with the product, which changes more often), or unpacks one.

Usage: oci.py pack DIRECTORY ARCHIVE NAME:TAG ARCHITECTURE | oci.py unpack ARCHIVE DIRECTORY
"""

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def layer(root, wanted):
    """One layer's tar: what `wanted` accepts, in order, as root's, with one time."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(os.path.join(folder, name) for folder, folders, files in os.walk(root) for name in folders + files):
            name = os.path.relpath(path, root)
            if not wanted(name):
                continue
            info = archive.gettarinfo(path, name)
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = EPOCH
            if info.isreg():
                with open(path, "rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info)
    return out.getvalue()


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), EPOCH, 0o644
    archive.addfile(info, io.BytesIO(data))


def digest(data):
    return hashlib.sha256(data).hexdigest()


def pack(root, target, tag, architecture):
    below_opt = lambda name: name == "opt" or name.startswith("opt/")
    plain = [layer(root, lambda name: not below_opt(name)), layer(root, below_opt)]
    # Level 6, without a time or a name: the same bytes each time.
    packed = [gzip.compress(data, 6, mtime=0) for data in plain]
    settings = {
        "Entrypoint": ["/usr/local/bin/kata-deploy"],
        "Cmd": ["run"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "KATA_HOST=/host"],
    }
    config = json.dumps({
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest(data) for data in plain]},
    }, sort_keys=True).encode()
    kind = "application/vnd.oci.image."
    described = lambda what, data: {"mediaType": kind + what, "digest": "sha256:" + digest(data), "size": len(data)}
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": kind + "manifest.v1+json",
        "config": described("config.v1+json", config),
        "layers": [described("layer.v1.tar+gzip", data) for data in packed],
    }, sort_keys=True).encode()
    entry = described("manifest.v1+json", manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": tag.rsplit(":", 1)[1], "io.containerd.image.name": tag}
    entry["platform"] = {"architecture": architecture, "os": "linux"}
    blobs = {digest(data): data for data in [config, manifest, *packed]}
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [entry]}, sort_keys=True).encode())
        # Docker before 25 reads this instead.
        files = [f"blobs/sha256/{digest(data)}" for data in packed]
        docker = [{"Config": f"blobs/sha256/{digest(config)}", "RepoTags": [tag], "Layers": files}]
        add(archive, "manifest.json", json.dumps(docker, sort_keys=True).encode())
        for name in sorted(blobs):
            add(archive, f"blobs/sha256/{name}", blobs[name])


def unpack(source, target):
    with tarfile.open(source) as archive:
        blob = lambda name: archive.extractfile("blobs/sha256/" + name.removeprefix("sha256:")).read()
        manifest = json.loads(blob(json.load(archive.extractfile("index.json"))["manifests"][0]["digest"]))
        for part in manifest["layers"]:
            with tarfile.open(fileobj=io.BytesIO(blob(part["digest"]))) as content:
                content.extractall(target, filter="fully_trusted") if hasattr(tarfile, "fully_trusted_filter") else content.extractall(target)


if len(sys.argv) == 6 and sys.argv[1] == "pack":
    pack(*sys.argv[2:])
elif len(sys.argv) == 4 and sys.argv[1] == "unpack":
    unpack(*sys.argv[2:])
else:
    sys.exit(__doc__)
