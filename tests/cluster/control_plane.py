"""etcd, kube-apiserver and kube-controller-manager, with certificates of their own."""

import base64
import json

from machine import KUBECONFIG, PKI, QUIET, RUN, free_ports, kubectl, need, sh, start, wait

POD_CIDR, SERVICE_CIDR = "10.244.0.0/24", "10.96.0.0/16"
KUBERNETES_IP, DNS_IP = "10.96.0.1", "10.96.0.10"


def run(ip: str, *, inside: bool) -> None:
    """Start the control plane on ``ip``, a loopback or (``inside``) the node's own address.

    Returns when it serves and the default namespace has its service account.
    """
    need("openssl")
    etcd_client, etcd_peer, secure = free_ports(3)
    _certificates(ip, secure)
    etcd = f"http://127.0.0.1:{etcd_client}"
    start(
        "etcd",
        *("--data-dir", RUN / "etcd", "--unsafe-no-fsync", "--log-level", "warn"),
        *("--listen-client-urls", etcd, "--advertise-client-urls", etcd),
        *("--listen-peer-urls", f"http://127.0.0.1:{etcd_peer}"),
        inside=inside,
    )
    start(
        "kube-apiserver",
        f"--etcd-servers={etcd}",
        f"--secure-port={secure}",
        f"--bind-address={ip}",
        f"--advertise-address={ip}",
        f"--cert-dir={PKI}",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--client-ca-file={PKI}/ca.crt",
        f"--service-account-key-file={PKI}/sa.key",
        f"--service-account-signing-key-file={PKI}/sa.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={PKI}/admin.crt",
        f"--kubelet-client-key={PKI}/admin.key",
        # Endpoints may not be loopback addresses; without a node nobody needs these.
        *([] if inside else ["--endpoint-reconciler-type=none"]),
        inside=inside,
    )
    wait("kube-apiserver", lambda: kubectl("get", "--raw", "/readyz", **QUIET))
    start(
        "kube-controller-manager",
        f"--kubeconfig={KUBECONFIG}",
        "--leader-elect=false",
        "--secure-port=0",
        f"--service-account-private-key-file={PKI}/sa.key",
        f"--root-ca-file={PKI}/ca.crt",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
        inside=inside,
    )
    wait(
        "the default service account",
        lambda: kubectl("get", "serviceaccount", "default", **QUIET),
    )


def _certificates(ip: str, port: int) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")

    def openssl(*args: object) -> None:
        sh("openssl", *args, cwd=PKI, **QUIET)

    def issue(name: str, subject: str, names: str) -> None:
        openssl(
            *("req", *curve, "-keyout", f"{name}.key"), *("-out", f"{name}.csr", "-subj", subject)
        )
        (PKI / f"{name}.ext").write_text(f"subjectAltName={names}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "3650", "-out", f"{name}.crt"),
            *("-extfile", f"{name}.ext"),
        )

    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
    openssl(
        *("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt"),
        *("-days", "3650", "-subj", "/CN=tollhouse-test"),
    )
    service = "kubernetes.default.svc.cluster.local"
    names = ["localhost", *(service.rsplit(".", dots)[0] for dots in (4, 3, 2)), service]
    addresses = ("127.0.0.1", KUBERNETES_IP, ip)
    issue(
        "apiserver",
        "/CN=kube-apiserver",
        ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)]),
    )
    issue("admin", "/O=system:masters/CN=admin", "DNS:admin")
    issue("kubelet", "/O=system:nodes/CN=system:node:node1", f"DNS:node1,IP:{ip}")
    for user in ("admin", "kubelet"):
        _kubeconfig(user, f"https://{ip}:{port}")


def _kubeconfig(user: str, server: str) -> None:
    def data(name: str) -> str:
        return base64.b64encode((PKI / name).read_bytes()).decode()

    name = "tollhouse-test"
    path = RUN / f"{user}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": name,
                "clusters": [
                    {
                        "name": name,
                        "cluster": {
                            "server": server,
                            "certificate-authority-data": data("ca.crt"),
                        },
                    }
                ],
                "users": [
                    {
                        "name": user,
                        "user": {
                            "client-certificate-data": data(f"{user}.crt"),
                            "client-key-data": data(f"{user}.key"),
                        },
                    }
                ],
                "contexts": [{"name": name, "context": {"cluster": name, "user": user}}],
            },
            indent=1,
        )
    )
