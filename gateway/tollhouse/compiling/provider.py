"""Provider → an upstream account of the snapshot: its address, credential and authorities."""

import ssl
from functools import lru_cache

from tollhouse import snapshot as live
from tollhouse.findings import Finding, Reason, refused, unresolved, warning
from tollhouse.resources import Provider, Resources, seconds
from tollhouse.snapshot import Credential

SPOKEN_TYPES = ("OpenAI", "Mock")
"""The provider types that this version can talk to."""
OPENAI_URL = "https://api.openai.com/v1"


def named_by_provider(resource: Provider, resources: Resources) -> tuple[object, ...]:
    """All that ``compile_provider`` looks at beside the Provider itself; None for what is not
    there. With the same objects it gives the same."""
    spec, namespace = resource.spec, resource.metadata.namespace
    found: list[object] = []
    if spec.credentials is not None and spec.credentials.secret_ref is not None:
        found.append(resources.secrets.get((namespace, spec.credentials.secret_ref.name)))
    if spec.tls is not None:
        ref = (namespace, spec.tls.ca_ref.name)
        secret = spec.tls.ca_ref.kind == "Secret"
        found.append((resources.secrets if secret else resources.config_maps).get(ref))
    if spec.service_ref is not None:
        found.append(resources.services.get((namespace, spec.service_ref.name)))
    return tuple(found)


def compile_provider(
    resource: Provider, resources: Resources, found: list[Finding]
) -> live.Provider | None:
    """The upstream account; None, with an Error among ``found``, when it cannot be used.

    ``found`` is empty at first.
    """
    spec = resource.spec
    base_url, credential, ca_pem = "", None, None
    if spec.type not in SPOKEN_TYPES:
        types = " and ".join(SPOKEN_TYPES)
        message = f"this version does not speak {spec.type} yet; the types that work are {types}"
        found.append(refused(resource, "spec.type", Reason.UNSUPPORTED_TYPE, message))
    elif spec.type != "Mock":
        base_url = _base_url(resource, resources, found)
        credential = _credential(resource, resources, found)
        ca_pem = _ca_pem(resource, resources, found)
    if any(finding.severity == "Error" for finding in found):
        return None
    return live.Provider(
        namespace=resource.metadata.namespace,
        name=resource.metadata.name,
        type=spec.type,
        base_url=base_url,
        credential=credential,
        headers=dict(spec.headers),
        max_concurrent=spec.max_concurrent,
        health=live.Health(spec.health.consecutive_failures, seconds(spec.health.cooldown)),
        ca_pem=ca_pem,
        responses_native=_responses_native(resource, base_url),
        mock=_mock(resource) if spec.type == "Mock" else None,
    )


def _responses_native(resource: Provider, base_url: str) -> bool:
    """Whether requests to ``/v1/responses`` go to it as they are; only OpenAI surely takes them."""
    if resource.spec.responses is None:
        return base_url.startswith("https://api.openai.com/")
    return resource.spec.responses == "Native"


def _base_url(resource: Provider, resources: Resources, found: list[Finding]) -> str:
    spec, namespace = resource.spec, resource.metadata.namespace
    if spec.service_ref is None:
        return (spec.base_url or OPENAI_URL).rstrip("/")
    name, port = spec.service_ref.name, spec.service_ref.port
    service = resources.services.get((namespace, name))
    if service is None:
        message = f"the Service {namespace}/{name} does not exist"
        path = "spec.serviceRef.name"
        found.append(unresolved(resource, path, Reason.SERVICE_NOT_FOUND, message))
    elif service.ports and port not in service.ports:
        ports = ", ".join(map(str, service.ports))
        message = f"the Service {namespace}/{name} has no port {port}; it has {ports}"
        path = "spec.serviceRef.port"
        found.append(unresolved(resource, path, Reason.SERVICE_PORT_NOT_FOUND, message))
    # Authorities to check a certificate against say that there is one.
    scheme = "https" if spec.tls else "http"
    return f"{scheme}://{name}.{namespace}.svc:{port}/v1"


def _credential(
    resource: Provider, resources: Resources, found: list[Finding]
) -> Credential | None:
    spec, namespace = resource.spec, resource.metadata.namespace
    if spec.credentials is None:
        if spec.base_url is None and spec.service_ref is None:
            message = f"{OPENAI_URL} refuses requests without credentials; give a secretRef"
            found.append(warning(resource, "spec", Reason.NO_CREDENTIALS, message))
        return None
    for cloud in ("aws", "gcp", "azure"):
        if getattr(spec.credentials, cloud) is not None:
            path, message = f"spec.credentials.{cloud}", f"type {spec.type} takes a secretRef"
            found.append(refused(resource, path, Reason.UNSUPPORTED_FIELD, message))
            return None
    ref = spec.credentials.secret_ref
    if ref is None:
        return None
    path, where = "spec.credentials.secretRef", f"the Secret {namespace}/{ref.name}"
    secret = resources.secrets.get((namespace, ref.name))
    if secret is None:
        message = f"{where} does not exist"
        found.append(unresolved(resource, f"{path}.name", Reason.SECRET_NOT_FOUND, message))
        return None
    if ref.key not in secret.data:
        message = f"{where} has no text under the key {ref.key}"
        found.append(unresolved(resource, f"{path}.key", Reason.SECRET_KEY_NOT_FOUND, message))
        return None
    # Editors and `base64` leave line ends that no header may hold.
    value = secret.data[ref.key].value.strip()
    if not (value and value.isascii() and value.isprintable()):
        message = f"the value of {ref.key} in {where} is not one line of printable ASCII"
        found.append(unresolved(resource, f"{path}.key", Reason.INVALID_CREDENTIAL, message))
        return None
    return Credential(value)


def _ca_pem(resource: Provider, resources: Resources, found: list[Finding]) -> str | None:
    if resource.spec.tls is None:
        return None
    ref, namespace = resource.spec.tls.ca_ref, resource.metadata.namespace
    where, path = f"the {ref.kind} {namespace}/{ref.name}", "spec.tls.caRef"
    pem: str | None = None
    if ref.kind == "Secret":
        secret = resources.secrets.get((namespace, ref.name))
        exists = secret is not None
        if secret is not None and ref.key in secret.data:
            pem = secret.data[ref.key].value
    else:
        config_map = resources.config_maps.get((namespace, ref.name))
        exists = config_map is not None
        pem = config_map.data.get(ref.key) if config_map is not None else None
    if pem is None:
        message = f"{where} has no key {ref.key}" if exists else f"{where} does not exist"
        found.append(unresolved(resource, path, Reason.CA_REF_NOT_FOUND, message))
    elif not _holds_certificates(pem):
        message = f"{ref.key} in {where} does not hold certificates as PEM text"
        found.append(unresolved(resource, path, Reason.INVALID_CA, message))
    return pem


@lru_cache(maxsize=64)
def _holds_certificates(pem: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError, TypeError):
        return False
    return True


def _mock(resource: Provider) -> live.Mock:
    script = resource.spec.mock
    if script is None:
        return live.Mock()
    failure, usage = script.fail_with, script.usage
    return live.Mock(
        reply=script.reply,
        text=script.text,
        reasoning=script.reasoning,
        tool_calls=tuple(live.MockToolCall(it.name, it.arguments) for it in script.tool_calls),
        images=script.images,
        chunks=script.chunks,
        first_byte_delay=seconds(script.first_byte_delay),
        chunk_delay=seconds(script.chunk_delay),
        fail_with=live.MockFailure(**failure.model_dump()) if failure else None,
        usage=live.MockUsage(**usage.model_dump()) if usage else None,
    )
