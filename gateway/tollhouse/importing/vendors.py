"""LiteLLM's names for providers, and what each is here.

Source: LiteLLM's pages "Providers" and "Proxy Config.yaml". Whoever speaks OpenAI's protocol at an
address of its own is type OpenAI with that address.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vendor:
    """``base_url`` None: the type's own. ``variable`` is where LiteLLM looks for a key that the
    configuration does not name; None where the upstream usually wants none. ``needs_base``: there
    is no address without an ``api_base``. ``suffix`` is what LiteLLM itself adds to ``api_base``.
    """

    type: str = "OpenAI"
    base_url: str | None = None
    variable: str | None = None
    needs_base: bool = False
    suffix: str = ""


VENDORS: dict[str, Vendor] = {
    "openai": Vendor(variable="OPENAI_API_KEY"),
    "text-completion-openai": Vendor(variable="OPENAI_API_KEY"),
    "azure": Vendor("AzureOpenAI", variable="AZURE_API_KEY", needs_base=True),
    "azure_ai": Vendor(variable="AZURE_AI_API_KEY", needs_base=True),
    "anthropic": Vendor("Anthropic", variable="ANTHROPIC_API_KEY"),
    "gemini": Vendor("Gemini", variable="GEMINI_API_KEY"),
    "vertex_ai": Vendor("VertexAI"),
    "vertex_ai_beta": Vendor("VertexAI"),
    "bedrock": Vendor("Bedrock"),
    "bedrock_converse": Vendor("Bedrock"),
    "groq": Vendor(base_url="https://api.groq.com/openai/v1", variable="GROQ_API_KEY"),
    "mistral": Vendor(base_url="https://api.mistral.ai/v1", variable="MISTRAL_API_KEY"),
    "deepseek": Vendor(base_url="https://api.deepseek.com/v1", variable="DEEPSEEK_API_KEY"),
    "xai": Vendor(base_url="https://api.x.ai/v1", variable="XAI_API_KEY"),
    "openrouter": Vendor(base_url="https://openrouter.ai/api/v1", variable="OPENROUTER_API_KEY"),
    "together_ai": Vendor(base_url="https://api.together.xyz/v1", variable="TOGETHERAI_API_KEY"),
    "fireworks_ai": Vendor(
        base_url="https://api.fireworks.ai/inference/v1", variable="FIREWORKS_AI_API_KEY"
    ),
    "perplexity": Vendor(base_url="https://api.perplexity.ai", variable="PERPLEXITYAI_API_KEY"),
    "cerebras": Vendor(base_url="https://api.cerebras.ai/v1", variable="CEREBRAS_API_KEY"),
    "nvidia_nim": Vendor(
        base_url="https://integrate.api.nvidia.com/v1", variable="NVIDIA_NIM_API_KEY"
    ),
    "sambanova": Vendor(base_url="https://api.sambanova.ai/v1", variable="SAMBANOVA_API_KEY"),
    "deepinfra": Vendor(
        base_url="https://api.deepinfra.com/v1/openai", variable="DEEPINFRA_API_KEY"
    ),
    "hosted_vllm": Vendor(needs_base=True),
    "vllm": Vendor(needs_base=True),
    "openai_like": Vendor(needs_base=True),
    "custom_openai": Vendor(needs_base=True),
    "litellm_proxy": Vendor(needs_base=True),
    "lm_studio": Vendor(needs_base=True),
    "llamafile": Vendor(needs_base=True),
    "xinference": Vendor(needs_base=True),
    # Ollama speaks OpenAI's protocol below /v1; LiteLLM talks to its own below /api.
    "ollama": Vendor(needs_base=True, suffix="/v1"),
    "ollama_chat": Vendor(needs_base=True, suffix="/v1"),
}
BARE = (
    (
        ("gpt-", "o1", "o3", "o4", "chatgpt-", "text-embedding-", "dall-e", "whisper-", "tts-"),
        "openai",
    ),
    (("claude-",), "anthropic"),
)
"""By which beginnings LiteLLM knows the provider of a model that names none."""


def split(model: str, declared: str | None) -> tuple[str | None, str]:
    """(LiteLLM's provider, the provider's own name for the model) of ``litellm_params.model``.

    ``declared`` is ``custom_llm_provider``. None for a provider that is not known here.
    """
    prefix, slash, rest = model.partition("/")
    if declared is not None:
        own = rest if slash and prefix == declared else model
        return (declared if declared in VENDORS else None), own
    if slash:
        return (prefix if prefix in VENDORS else None), rest
    for beginnings, vendor in BARE:
        if model.startswith(beginnings):
            return vendor, model
    return None, model
