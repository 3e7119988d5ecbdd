"""Tollhouse: a Kubernetes-native LLM gateway.

Configuration arrives as custom resources and leaves as one immutable snapshot; requests arrive
in OpenAI's shape and leave to whichever provider the snapshot names. See ``docs/architecture.md``
for the two paths, file by file.
"""

__version__ = "0.1.0"
