"""What the operator writes into ``status``, for the CRDs: nothing here parses it."""

from typing import Annotated, Literal

from pydantic import AwareDatetime

from tollhouse.kinds.schema import Merging, Model, says


class Condition(Model):
    """A metav1.Condition, with that type's bounds."""

    type: Annotated[
        str,
        says("Accepted, ResolvedRefs, Programmed, Ready or Exhausted.", max_length=316),
    ]
    status: Annotated[Literal["True", "False", "Unknown"], says("Whether it is so.")]
    observed_generation: Annotated[
        int, says("The metadata.generation that this was said about.", ge=0)
    ] = 0
    last_transition_time: Annotated[AwareDatetime, says("When status last changed.")]
    reason: Annotated[str, says("Why, as one CamelCase word.", min_length=1, max_length=1024)]
    message: Annotated[str, says("Why, for people, and what to do about it.", max_length=32768)]


class Status(Model):
    """What the operator found and did."""

    conditions: Annotated[
        tuple[Condition, ...],
        says(
            "Accepted: the spec is valid and conflicts with nothing older. ResolvedRefs: all that "
            "it names exists. Programmed: it is live on the gateways. Ready: requests with the key "
            "are let in. Exhausted: the budget is spent.",
            max_length=16,
        ),
        Merging(("type",)),
    ] = ()


class Spend(Model):
    amount: Annotated[str, says("Spent in this period, in USD.", max_length=24)]
    since: Annotated[AwareDatetime | None, says("When the period began.")] = None
    resets: Annotated[AwareDatetime | None, says("When the period ends.")] = None
    warned: Annotated[
        int | None,
        says("The highest percentage of it that an event told of in this period.", ge=1, le=100),
    ] = None


class BudgetStatus(Status):
    """What the operator found, and what was spent."""

    spend: Annotated[Spend | None, says("What was spent in the current period.")] = None


class ApiKeyStatus(BudgetStatus):
    """What the operator found, the head of the key, and what was spent."""

    prefix: Annotated[
        str | None, says("The head of the key, to tell keys apart.", max_length=16)
    ] = None
    last_rotated: Annotated[
        AwareDatetime | None, says("When the operator last replaced the key.")
    ] = None
    next_rotation: Annotated[
        AwareDatetime | None, says("When it replaces the key again, by spec.rotation.")
    ] = None
