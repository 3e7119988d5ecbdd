"""A node that runs pods: a network namespace, containerd, kubelet, kube-proxy and CoreDNS.

It needs root and the Debian packages containerd, runc, containernetworking-plugins, iproute2,
iptables, conntrack, procps, gcc and buildah. One at a time: its addresses are fixed.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from control_plane import DNS_IP, POD_CIDR, SERVICE_CIDR
from machine import (
    KUBECONFIG,
    NETNS,
    PKI,
    QUIET,
    RUN,
    ClusterError,
    MissingError,
    kubectl,
    need,
    sh,
    start,
    wait,
)

HOST_IP, NODE_IP = "10.233.0.1", "10.233.0.2"
_HOST_LINK = "tollhouse-host"
_NAMESPACES_BEFORE = RUN / "netns"
_SOCKET = RUN / "containerd.sock"


def network() -> None:
    """A namespace that is the node, joined to this host by one veth pair."""
    need("ip", "nsenter", "containerd", "runc", "iptables", "conntrack", "gcc", "buildah", "ctr")
    need("ps")
    if os.getuid() != 0:
        raise MissingError("a node that runs pods needs root")
    before = _namespaces()
    if NETNS in before:
        raise ClusterError(
            "another node runs on this machine, and there can be one: stop it with "
            "`cluster.py down` and its TOLLHOUSE_TESTCLUSTER_DIR"
        )
    _NAMESPACES_BEFORE.write_text("\n".join(before))
    sh("ip", "netns", "add", NETNS)
    sh(
        *("ip", "link", "add", _HOST_LINK, "type", "veth"),
        *("peer", "name", "eth0", "netns", NETNS),
    )
    sh("ip", "addr", "add", f"{HOST_IP}/30", "dev", _HOST_LINK)
    sh("ip", "link", "set", _HOST_LINK, "up")
    inside = ("ip", "-n", NETNS)
    sh(*inside, "link", "set", "lo", "up")
    sh(*inside, "addr", "add", f"{NODE_IP}/30", "dev", "eth0")
    sh(*inside, "link", "set", "eth0", "up")
    sh(*inside, "route", "add", "default", "via", HOST_IP)
    for cidr in (POD_CIDR, SERVICE_CIDR):
        sh("ip", "route", "add", cidr, "via", NODE_IP)
    for key in ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables"):
        # Where a kernel lacks one of them, pods still reach each other.
        subprocess.run(["ip", "netns", "exec", NETNS, "sysctl", "-qw", f"{key}=1"], check=False)


def run() -> None:
    """Start the node's processes; returns when the node is ready."""
    _pause_image()
    _configure_containerd()
    start("containerd", "--config", RUN / "containerd.toml", inside=True)
    wait("containerd", _SOCKET.exists)
    load([RUN / "pause.tar"])
    start(
        "kube-scheduler",
        *(f"--kubeconfig={KUBECONFIG}", "--leader-elect=false", "--secure-port=0"),
        inside=True,
    )
    _configure_kubelet()
    start(
        "kubelet",
        f"--kubeconfig={RUN}/kubelet.kubeconfig",
        f"--config={RUN}/kubelet.json",
        "--hostname-override=node1",
        f"--node-ip={NODE_IP}",
        f"--root-dir={RUN}/kubelet",
        inside=True,
    )
    start(
        "kube-proxy",
        f"--kubeconfig={KUBECONFIG}",
        "--hostname-override=node1",
        f"--cluster-cidr={POD_CIDR}",
        "--proxy-mode=iptables",
        "--conntrack-max-per-core=0",
        "--metrics-bind-address=127.0.0.1:10249",
        inside=True,
    )
    _dns()
    wait("kubelet", lambda: kubectl("get", "node", "node1", **QUIET))
    kubectl("wait", "--for=condition=Ready", "node/node1", "--timeout=60s", **QUIET)


def load(archives: Iterable[Path]) -> None:
    """Import image archives (docker-archive) into the node."""
    for archive in archives:
        if not _SOCKET.exists():
            raise ClusterError(f"no node runs in {RUN}: `cluster.py up --node` starts one")
        sh(
            *("ctr", "-a", _SOCKET, "-n", "k8s.io", "images", "import", archive),
            stdout=subprocess.DEVNULL,
        )


def remove() -> None:
    """Stop every pod's processes and undo the mounts and the network, by what is ours."""
    if not _NAMESPACES_BEFORE.exists():
        return
    for shim in _shims():
        pods = subprocess.run(
            ["ps", "--ppid", shim, "-o", "pid="], capture_output=True, text=True, check=False
        )
        for pid in (shim, *pods.stdout.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((path for path in mounts if path.startswith(f"{RUN}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    for name in _namespaces() - set(_NAMESPACES_BEFORE.read_text().split()):
        if name == NETNS or name.startswith("cni-"):
            sh("ip", "netns", "delete", name)
    if shutil.which("ip"):
        subprocess.run(["ip", "link", "delete", _HOST_LINK], check=False, **QUIET)


def _pause_image() -> None:
    """The sandbox image that every pod needs, from a few lines of C."""
    source = RUN / "pause.c"
    source.write_text(
        "#include <signal.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
        "static void stop(int sign) { exit(0); }\n"
        "int main(void) { signal(SIGTERM, stop); signal(SIGINT, stop); for (;;) pause(); }\n"
    )
    image = "localhost/pause:1"
    sh("gcc", "-static", "-Os", "-o", RUN / "pause", source)
    container = sh("buildah", "from", "scratch", stdout=subprocess.PIPE).stdout.strip()
    sh("buildah", "copy", "-q", container, RUN / "pause", "/pause", stdout=subprocess.DEVNULL)
    sh("buildah", "config", "--entrypoint", '["/pause"]', container)
    sh("buildah", "commit", "-q", container, image, stdout=subprocess.DEVNULL)
    sh("buildah", "rm", container, stdout=subprocess.DEVNULL)
    sh("buildah", "push", "-q", image, f"docker-archive:{RUN}/pause.tar:{image}")


def _configure_containerd() -> None:
    (RUN / "cni").mkdir()
    (RUN / "cni" / "10-bridge.conflist").write_text(
        json.dumps(
            {
                "cniVersion": "0.4.0",
                "name": "pods",
                "plugins": [
                    {
                        "type": "bridge",
                        "bridge": "cni0",
                        "isGateway": True,
                        "hairpinMode": True,
                        "ipam": {
                            "type": "host-local",
                            "ranges": [[{"subnet": POD_CIDR}]],
                            "routes": [{"dst": "0.0.0.0/0"}],
                        },
                    },
                    {"type": "portmap", "capabilities": {"portMappings": True}},
                ],
            }
        )
    )
    # restrict_oom_score_adj: a sandbox without CAP_SYS_RESOURCE may not lower it.
    (RUN / "containerd.toml").write_text(f"""\
version = 2
root = "{RUN}/containerd/root"
state = "{RUN}/containerd/state"
[grpc]
  address = "{_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "localhost/pause:1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{RUN}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")


def _configure_kubelet() -> None:
    (RUN / "kubelet.json").write_text(
        json.dumps(
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "failCgroupV1": False,
                "failSwapOn": False,
                "cgroupDriver": "cgroupfs",
                "containerRuntimeEndpoint": f"unix://{_SOCKET}",
                "authentication": {
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": f"{PKI}/ca.crt"},
                },
                "authorization": {"mode": "Webhook"},
                "address": NODE_IP,
                "clusterDomain": "cluster.local",
                "clusterDNS": [DNS_IP],
                "tlsCertFile": f"{PKI}/kubelet.crt",
                "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
                "evictionHard": {
                    "memory.available": "100Mi",
                    "nodefs.available": "1%",
                    "imagefs.available": "1%",
                },
            }
        )
    )


def _dns() -> None:
    """CoreDNS as a process, and kube-dns as a Service without a selector in front of it."""
    (RUN / "Corefile").write_text(
        f".:53 {{\n bind {NODE_IP}\n kubernetes cluster.local in-addr.arpa {{\n"
        f"  kubeconfig {KUBECONFIG} tollhouse-test\n }}\n errors\n}}\n"
    )
    start("coredns", "-conf", RUN / "Corefile", inside=True)
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"clusterIP": DNS_IP, "ports": ports},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "endpoints": [{"addresses": [NODE_IP]}],
        "ports": ports,
    }
    everything = {"apiVersion": "v1", "kind": "List", "items": [service, endpoints]}
    kubectl("apply", "-f", "-", stdout=subprocess.DEVNULL, input=json.dumps(everything))


def _shims() -> Iterator[str]:
    """Pids of the container shims that serve this cluster's containerd socket."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"containerd-shim" in argv and f"{RUN}/".encode() in argv:
            yield process.name


def _namespaces() -> set[str]:
    """Names of the network namespaces that `ip netns` knows."""
    return {path.name for path in Path("/run/netns").glob("*")}
