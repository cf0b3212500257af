#!/usr/bin/env python3
"""Writes what the manifests on standard input say, one object a line, without what may differ between the plain manifests and the
chart: labels, the hook, and the right to delete that only the hook needs."""

import json
import sys

import yaml


class Strict(yaml.SafeLoader):
    """A key that is there twice is an error; YAML's loaders take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise SystemExit(f"error: {node.start_mark}: a key is there twice: {keys}")
        return super().construct_mapping(node, deep)


lines = []
for item in yaml.load_all(sys.stdin, Strict):
    if not item or item["kind"] == "Job":
        continue
    item["metadata"].pop("labels", None)
    if item["kind"] == "DaemonSet":
        item["spec"].pop("selector")
        item["spec"]["template"]["metadata"].pop("labels")
        variables = item["spec"]["template"]["spec"]["containers"][0]["env"]
        # These are the chart's words for kata-deploy's own defaults.
        variables[:] = [v for v in variables if v["name"] not in ("KATA_DEBUG", "KATA_DEADLINE", "KATA_FLAVOUR")]
    for rule in item.get("rules", []):
        rule["verbs"] = [verb for verb in rule["verbs"] if verb != "delete"]
    lines.append(json.dumps(item, sort_keys=True))
print("\n".join(sorted(lines)))
