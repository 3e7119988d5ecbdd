"""Provider: an upstream account."""

import re
from typing import Annotated, Literal

from pydantic import Field

from tollhouse.kinds.fields import Count, DataKey, Delay, Duration, ObjectName, Text, Timeouts
from tollhouse.kinds.schema import Model, Rule, matching, says

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""What a header's name is made of (RFC 9110, 5.6.2)."""
_WRITTEN_BY_US = (
    *("Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "Cookie", "Host"),
    *("Connection", "Content-Length", "Content-Type", "Transfer-Encoding"),
)
_SPELLINGS = (*_WRITTEN_BY_US, *(name.lower() for name in _WRITTEN_BY_US))
Headers = Annotated[
    dict[str, Annotated[str, Field(max_length=4096)]],
    Field(max_length=32),
    Rule(
        f"!self.exists(k, k in {list(_SPELLINGS)})",
        "must not set headers that the gateway writes itself: keys belong into credentials, and "
        "Host, Content-Type and the like follow from the request",
        lambda headers: not any(name.lower() in _SPELLINGS for name in headers),
    ),
    Rule(
        "self.all(k, !self[k].contains('\\n') && !self[k].contains('\\r'))",
        "must not hold line breaks",
        lambda headers: not any("\n" in value or "\r" in value for value in headers.values()),
    ),
    Rule(
        "",
        "must have header names of letters, digits and hyphens",
        lambda headers: all(_TOKEN.fullmatch(name) for name in headers),
    ),
]
BaseURL = Annotated[
    str,
    Field(max_length=2048),
    matching(
        r"^https?://[^\s/?#@]+(/[^\s?#]*)?$",
        "must be an http or https address without credentials, query or fragment, such as "
        "https://api.openai.com/v1",
    ),
]


class SecretKeyRef(Model):
    name: Annotated[ObjectName, says("The Secret's name, in the Provider's namespace.")]
    key: Annotated[DataKey, says("Which of the Secret's data keys holds the credential.")] = (
        "api-key"
    )


class Aws(Model):
    """Bedrock's account: ambient identity (IRSA, Pod Identity) unless a secretRef stands beside."""

    region: Annotated[
        Text, says("The region of the Bedrock endpoint, such as eu-central-1.", min_length=1)
    ]
    role_arn: Annotated[
        str | None,
        says(
            "A role to assume with the pod's own identity; without it, that identity itself.",
            alias="roleARN",
            max_length=2048,
        ),
    ] = None


class Gcp(Model):
    """Vertex AI's project: workload identity unless a secretRef stands beside."""

    project: Annotated[Text, says("The Google Cloud project that is billed.", min_length=1)]
    location: Annotated[
        Text, says("The Vertex AI location, such as europe-west4 or global.", min_length=1)
    ]
    service_account: Annotated[
        Text | None, says("The e-mail address of a service account to impersonate.")
    ] = None


class Azure(Model):
    """An Azure OpenAI resource: workload identity unless a secretRef stands beside."""

    tenant_id: Annotated[Text | None, says("The Entra tenant of the identity.")] = None
    client_id: Annotated[Text | None, says("The client id of the managed identity.")] = None
    api_version: Annotated[
        Text | None, says("The api-version query parameter, such as 2024-10-21.")
    ] = None


class Credentials(Model):
    secret_ref: Annotated[
        SecretKeyRef | None,
        says("A Secret in this namespace that holds the API key, as one line of text."),
    ] = None
    aws: Annotated[Aws | None, says("Where Bedrock runs, and the role to use.")] = None
    gcp: Annotated[Gcp | None, says("Where Vertex AI runs, and the account to use.")] = None
    azure: Annotated[Azure | None, says("The identity and API version of Azure OpenAI.")] = None
    rules = (
        Rule(
            "[has(self.aws), has(self.gcp), has(self.azure)].filter(x, x).size() <= 1",
            "give at most one of aws, gcp and azure",
            lambda it: sum(cloud is not None for cloud in (it.aws, it.gcp, it.azure)) <= 1,
        ),
        Rule(
            "has(self.secretRef) || has(self.aws) || has(self.gcp) || has(self.azure)",
            "give a secretRef or one of aws, gcp and azure; leave credentials out when the "
            "upstream needs none",
            lambda it: any((it.secret_ref, it.aws, it.gcp, it.azure)),
        ),
    )


class ServiceRef(Model):
    name: Annotated[ObjectName, says("The Service's name, in the Provider's namespace.")]
    port: Annotated[int, says("The Service's port.", ge=1, le=65535)]


class ProviderTimeouts(Timeouts):
    connect: Annotated[Duration, says("How long connecting may take, TLS included.")] = "5s"
    first_byte: Annotated[
        Duration, says("How long the upstream may take from the request to its answer.")
    ] = "60s"
    idle: Annotated[
        Duration, says("How long the upstream may pause in the middle of an answer.")
    ] = "60s"
    total: Annotated[Duration, says("How long one attempt may take as a whole.")] = "10m"


class Health(Model):
    consecutive_failures: Annotated[
        int, says("A model of it is passed over after so many failures in a row.", ge=1, le=1000)
    ] = 5
    cooldown: Annotated[
        Duration, says("How long it is passed over before one request tries it again.")
    ] = "30s"


class CaRef(Model):
    kind: Annotated[Literal["ConfigMap", "Secret"], says("What holds the certificates.")] = (
        "ConfigMap"
    )
    name: Annotated[ObjectName, says("Its name, in the Provider's namespace.")]
    key: Annotated[DataKey, says("Which data key holds the PEM certificates.")] = "ca.crt"


class Tls(Model):
    ca_ref: Annotated[CaRef, says("The authorities that the upstream's certificate may come from.")]


class MockToolCall(Model):
    name: Annotated[Text, says("The function's name.", min_length=1)]
    arguments: Annotated[
        str, says("The call's arguments, a JSON object as text.", max_length=65536)
    ] = "{}"


class MockFailure(Model):
    status: Annotated[
        int | None, says("The HTTP status to fail with; 500 when nothing else is given.",
                         ge=400, le=599)
    ] = None  # fmt: skip
    body: Annotated[str | None, says("The failure's body, as it stands.", max_length=65536)] = None
    every_nth: Annotated[int, says("1 fails every request, 3 every third.", ge=1, le=1_000_000)] = 1
    after_chunks: Annotated[
        int | None, says("Fail in mid-stream, after so many chunks.", ge=0, le=100_000)
    ] = None
    disconnect: Annotated[
        bool, says("Close the connection instead of answering with an error.")
    ] = False


class MockUsage(Model):
    prompt_tokens: Annotated[Count | None, says("Tokens of the prompt.")] = None
    completion_tokens: Annotated[Count | None, says("Tokens of the answer.")] = None
    reasoning_tokens: Annotated[Count | None, says("Tokens of the answer that are reasoning.")] = (
        None
    )
    cached_tokens: Annotated[Count | None, says("Tokens of the prompt that came from a cache.")] = (
        None
    )


class Mock(Model):
    """The script of a Provider that needs no upstream: for demos, tests and load runs."""

    reply: Annotated[
        Literal["Echo", "Text"],
        says("Echo answers with the last user message, Text with `text`."),
    ] = "Echo"
    text: Annotated[str | None, says("The answer, for reply Text.", max_length=65536)] = None
    reasoning: Annotated[
        str | None, says("Reasoning to put before the answer.", max_length=65536)
    ] = None
    tool_calls: Annotated[
        tuple[MockToolCall, ...], says("Tool calls to answer with.", max_length=32)
    ] = ()
    images: Annotated[
        tuple[Annotated[str, Field(max_length=65536)], ...],
        says("Images to answer with, as URLs or data URIs.", max_length=16),
    ] = ()
    chunks: Annotated[
        int | None,
        says("Into how many chunks a stream cuts the answer; a word each otherwise.",
             ge=1, le=100_000),
    ] = None  # fmt: skip
    first_byte_delay: Annotated[Delay, says("How long to wait before answering.")] = "0s"
    chunk_delay: Annotated[Delay, says("How long to wait between two chunks.")] = "0s"
    fail_with: Annotated[MockFailure | None, says("How and how often to fail.")] = None
    usage: Annotated[MockUsage | None, says("The usage to report; counted in words otherwise.")] = (
        None
    )
    rules = (
        Rule(
            "self.reply != 'Text' || has(self.text)",
            "reply Text needs text",
            lambda it: it.reply != "Text" or it.text is not None,
            field="text",
        ),
    )


class ProviderSpec(Model):
    """An upstream account: where requests go and what they authenticate with."""

    type: Annotated[
        Literal["OpenAI", "Anthropic", "Gemini", "VertexAI", "Bedrock", "AzureOpenAI", "Mock"],
        says(
            "The protocol that the upstream speaks. Any OpenAI-compatible server is OpenAI with a "
            "baseURL or serviceRef of its own; Mock answers by itself."
        ),
    ]
    base_url: Annotated[
        BaseURL | None,
        says(
            "The upstream's address up to and including its version, such as "
            "https://api.openai.com/v1. Each type has a default.",
            alias="baseURL",
        ),
    ] = None
    service_ref: Annotated[
        ServiceRef | None,
        says("A Service in this namespace, instead of a baseURL; spoken to as http://…/v1."),
    ] = None
    credentials: Annotated[
        Credentials | None,
        says("What requests authenticate with; leave it out when the upstream wants nothing."),
    ] = None
    headers: Annotated[
        Headers,
        says("Headers sent with every request, as they stand. Keys belong into credentials."),
    ] = Field(default_factory=dict)
    timeouts: Annotated[ProviderTimeouts, says("How long an attempt may take.")] = (
        ProviderTimeouts()
    )
    responses: Annotated[
        Literal["Native", "Translate"] | None,
        says(
            "Whether the upstream answers /responses itself (Native) or gets chat completions that "
            "say the same (Translate). Native by default at api.openai.com, Translate elsewhere."
        ),
    ] = None
    max_concurrent: Annotated[
        int | None,
        says("How many requests one gateway pod may have with this Provider at once.",
             ge=1, le=1_000_000),
    ] = None  # fmt: skip
    health: Annotated[
        Health, says("When a gateway pod passes over a model of the Provider, and for how long.")
    ] = Health()
    tls: Annotated[Tls | None, says("How the upstream's certificate is checked.")] = None
    mock: Annotated[Mock | None, says("What a Provider of type Mock answers.")] = None
    rules = (
        Rule(
            "!(has(self.baseURL) && has(self.serviceRef))",
            "give either baseURL or serviceRef",
            lambda it: it.base_url is None or it.service_ref is None,
        ),
        Rule(
            "!has(self.responses) || self.type == 'OpenAI'",
            "responses is only for type OpenAI",
            lambda it: it.responses is None or it.type == "OpenAI",
            field="responses",
        ),
        Rule(
            "!has(self.mock) || self.type == 'Mock'",
            "mock is only for type Mock",
            lambda it: it.mock is None or it.type == "Mock",
            field="mock",
        ),
        Rule(
            "self.type != 'AzureOpenAI' || has(self.baseURL) || has(self.serviceRef)",
            "type AzureOpenAI needs a baseURL: the resource's endpoint, such as "
            "https://my-resource.openai.azure.com",
            lambda it: it.type != "AzureOpenAI" or bool(it.base_url or it.service_ref),
        ),
        Rule(
            "self.type != 'Bedrock' || (has(self.credentials) && has(self.credentials.aws))",
            "type Bedrock needs credentials.aws with a region",
            lambda it: it.type != "Bedrock" or bool(it.credentials and it.credentials.aws),
        ),
        Rule(
            "self.type != 'VertexAI' || (has(self.credentials) && has(self.credentials.gcp))",
            "type VertexAI needs credentials.gcp with a project and a location",
            lambda it: it.type != "VertexAI" or bool(it.credentials and it.credentials.gcp),
        ),
    )
