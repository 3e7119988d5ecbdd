"""A cluster as its user may see it, read by kubectl: every way to log in that a kubeconfig can name
works, plug-ins included, and no right is needed but the user's own.

It only ever runs ``kubectl get``, and asks for Secrets in one function alone.
"""

import json
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from tollhouse.errors import ConfigError

SECONDS = 60.0
"""Bounds one call of kubectl, a log-in by plug-in among it."""
_KINDS = ("providers", "modelroutes", "apikeys", "ratelimitpolicies", "budgets")
_KEYS = "tollhouse.dev/apikey=true"
_MOST_SAID = 400

Manifest = dict[str, Any]


class Kubectl:
    """kubectl with a kubeconfig's ``context``, None for the current one.

    Every call raises ConfigError when kubectl is not there, takes too long, or says no.
    """

    def __init__(self, context: str | None, namespaces: Sequence[str] = ()) -> None:
        self._context = context
        self._namespaces = tuple(namespaces)

    def resources(self) -> list[Manifest]:
        """The custom resources, in the namespaces given or in all."""
        kinds = ",".join(f"{kind}.tollhouse.dev" for kind in _KINDS)
        return [it for where in self._where() for it in self._get(kinds, *where)]

    def namespaces(self) -> list[Manifest]:
        """Every Namespace there is, for its labels."""
        return self._get("namespaces")

    def keys(self) -> list[Manifest]:
        """The Secrets of ApiKeys, with their keys."""
        return [it for where in self._where() for it in self._get("secrets", *where, "-l", _KEYS)]

    def _where(self) -> list[tuple[str, ...]]:
        return [("-n", name) for name in self._namespaces] or [("--all-namespaces",)]

    def _get(self, kinds: str, *arguments: str) -> list[Manifest]:
        program = shutil.which("kubectl")
        if program is None:
            raise ConfigError("kubectl is not on the PATH: install it to look at a cluster")
        context = () if self._context is None else ("--context", self._context)
        command = [program, "get", kinds, *arguments, *context, "-o", "json"]
        try:
            done = subprocess.run(  # noqa: S603  # because the program is kubectl, and no shell reads the rest
                command, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"kubectl did not answer within {SECONDS:g} s") from None
        except OSError as error:
            raise ConfigError(f"kubectl does not start: {error.strerror}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise ConfigError(f"kubectl get {kinds.partition('.')[0]}: {said[:_MOST_SAID]}")
        try:
            items: list[Manifest] = json.loads(done.stdout)["items"]
        except (ValueError, KeyError, TypeError):
            raise ConfigError("kubectl did not print a list of objects as JSON") from None
        return items
