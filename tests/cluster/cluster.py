#!/usr/bin/env python3
"""A real Kubernetes on this machine, without Docker, kind or a container registry.

    cluster.py build [--node]   build the programs once (about 5 minutes, then cached)
    cluster.py up [--node]      start it; prints the kubeconfig's path
    cluster.py load ARCHIVE...  import image archives (docker-archive) into the node
    cluster.py image TAG        build the repository's image, with Docker or without any registry
    cluster.py helm ARGUMENT... run Helm, built where there is none of the version
    cluster.py stop NAME        stop one component, such as kube-apiserver
    cluster.py start NAME       and start it again as it was
    cluster.py down             stop it and leave nothing behind

`up` alone starts etcd, kube-apiserver and kube-controller-manager on loopback: every API feature
(CRDs, CEL validation, RBAC, admission webhooks, watches, garbage collection) but no pods; no root
needed. `up --node` adds scheduler, kubelet, kube-proxy, containerd and CoreDNS inside a network
namespace of its own, so charts install and pods really run; `node.py` says what that needs.

TOLLHOUSE_TESTCLUSTER_DIR names the run directory: one cluster each, as many as there is memory
for. The exit status is 3 when the machine lacks something, which is then named.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import binaries
import control_plane
import images
import machine
import node


def up(*, with_node: bool) -> None:
    """Start a fresh cluster; one that runs in the same directory is stopped first."""
    down()
    binaries.build(node=with_node)
    machine.make_run_directory()
    try:
        binaries.link(node=with_node)
        if with_node:
            node.network()
        control_plane.run(node.NODE_IP if with_node else "127.0.0.1", inside=with_node)
        if with_node:
            node.run()
    except BaseException:
        down()
        raise
    print(machine.KUBECONFIG)


def down() -> None:
    """Stop what ``up`` started, by the pids it wrote, then every pod's processes."""
    machine.stop()
    node.remove()
    machine.remove_run_directory()


def _obey(arguments: argparse.Namespace) -> None:
    match arguments.command:
        case "build":
            binaries.build(node=arguments.node)
        case "up":
            up(with_node=arguments.node)
        case "load":
            node.load(arguments.archives)
        case "image":
            images.product(arguments.tag)
        case "helm":
            machine.sh(binaries.helm(), *arguments.arguments)
        case "stop":
            machine.stop_one(arguments.component)
        case "start":
            machine.start_again(arguments.component)
        case "down":
            down()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("build", "up"):
        commands.add_parser(name).add_argument("--node", action="store_true")
    commands.add_parser("load").add_argument("archives", nargs="+", type=Path)
    commands.add_parser("image").add_argument("tag")
    commands.add_parser("helm").add_argument("arguments", nargs=argparse.REMAINDER)
    for name in ("stop", "start"):
        commands.add_parser(name).add_argument("component")
    commands.add_parser("down")
    arguments = parser.parse_args()
    try:
        _obey(arguments)
    except machine.MissingError as error:
        print(error, file=sys.stderr)
        return machine.MISSING
    except machine.ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed with status {error.returncode}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
