"""Conditions, the patches that they become, and the events that tell of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from tollhouse_operator.fleet import Census, gateways_of
from tollhouse_operator.status import (
    Condition,
    Desired,
    Placement,
    notes,
    patch,
    programmed,
    ready,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)

ACCEPTED = Condition("Accepted", "True", "Accepted", "The spec is valid.")
CONFLICT = Condition("Accepted", "False", "Conflict", "gpt is claimed by ai/older")


def _desired(*conditions: Condition, generation: int = 1, **fields: str | None) -> Desired:
    return Desired("uid", generation, conditions, fields)


def _status(*conditions: Condition, generation: int = 1) -> dict[str, Any]:
    change = patch({}, _desired(*conditions, generation=generation), NOW)
    assert change is not None
    return change


def _live(count: int, total: int) -> Condition:
    census = Census((5,) * count + (4,) * (total - count))
    return programmed(Placement(True, True, number=5, settled=False), census)


class TestProgrammed:
    def test_live_on_every_gateway(self) -> None:
        condition = _live(3, 3)
        assert (condition.status, condition.reason) == ("True", "Programmed")
        assert condition.message == "live on 3/3 gateways"

    def test_live_on_some_gateways_is_pending(self) -> None:
        condition = _live(2, 3)
        assert (condition.status, condition.reason) == ("False", "Pending")
        assert condition.message == "live on 2/3 gateways"

    def test_a_later_snapshot_holds_the_object_too(self) -> None:
        assert programmed(Placement(True, True, 5, settled=False), Census((5, 9))).status == "True"

    def test_no_gateways(self) -> None:
        assert _live(0, 0).reason == "NoGateways"

    def test_an_object_that_is_live_already_is_not_doubted_for_a_new_gateway(self) -> None:
        assert programmed(Placement(True, True, 5, settled=True), Census((5, 0))).status == "True"

    def test_what_is_not_accepted_is_not_live(self) -> None:
        found = programmed(Placement(False, False, 5, settled=False), Census((5,)))
        assert (found.status, found.reason) == ("False", "NotAccepted")

    def test_what_is_left_out_is_not_live(self) -> None:
        found = programmed(Placement(True, False, 5, settled=False), Census((5,)))
        assert (found.status, found.reason) == ("False", "NotResolved")

    def test_a_snapshot_that_does_not_fit_says_so(self) -> None:
        placement = Placement(True, True, None, settled=False, obstacle="the snapshot does not fit")
        found = programmed(placement, Census((5,)))
        assert (found.reason, found.message) == ("NotPublished", "the snapshot does not fit")


class TestReady:
    def test_every_condition_must_hold(self) -> None:
        assert ready([ACCEPTED, _live(1, 1)], disabled=False, expired=False).status == "True"
        assert ready([ACCEPTED, _live(0, 1)], disabled=False, expired=False).reason == "Pending"

    def test_a_disabled_key_is_not_ready(self) -> None:
        assert ready([ACCEPTED], disabled=True, expired=False).reason == "Disabled"

    def test_an_expired_key_is_not_ready(self) -> None:
        assert ready([ACCEPTED], disabled=False, expired=True).reason == "Expired"


class TestPatch:
    def test_nothing_to_say_is_no_patch(self) -> None:
        assert patch(_status(ACCEPTED), _desired(ACCEPTED), LATER) is None

    def test_a_condition_tells_its_generation_and_when_it_changed(self) -> None:
        (condition,) = _status(ACCEPTED, generation=7)["conditions"]
        assert condition["observedGeneration"] == 7
        assert condition["lastTransitionTime"] == "2026-01-02T03:04:05Z"

    def test_the_time_stays_while_the_status_does(self) -> None:
        change = patch(_status(ACCEPTED), _desired(ACCEPTED, generation=2), LATER)
        assert change is not None
        assert change["conditions"][0]["observedGeneration"] == 2
        assert change["conditions"][0]["lastTransitionTime"] == "2026-01-02T03:04:05Z"

    def test_the_time_moves_with_the_status(self) -> None:
        change = patch(_status(ACCEPTED), _desired(CONFLICT), LATER)
        assert change is not None
        assert change["conditions"][0]["lastTransitionTime"] == "2026-01-02T04:04:05Z"

    def test_another_count_of_gateways_is_not_worth_a_write(self) -> None:
        assert patch(_status(_live(3, 3)), _desired(_live(5, 5)), LATER) is None
        assert patch(_status(_live(1, 3)), _desired(_live(2, 3)), LATER) is None

    def test_the_count_is_told_with_the_next_transition(self) -> None:
        change = patch(_status(_live(1, 3)), _desired(_live(3, 3)), LATER)
        assert change is not None
        assert change["conditions"][0]["message"] == "live on 3/3 gateways"

    def test_conditions_of_others_stay(self) -> None:
        theirs = {"type": "Theirs", "status": "True", "reason": "R", "message": "m"}
        status = {"conditions": [theirs, *_status(ACCEPTED)["conditions"]]}
        assert patch(status, _desired(ACCEPTED), LATER) is None
        change = patch(status, _desired(CONFLICT), LATER)
        assert change is not None
        assert theirs in change["conditions"]

    def test_other_fields_are_patched_alone(self) -> None:
        change = patch(_status(ACCEPTED), _desired(ACCEPTED, prefix="sk-th-Ab12"), LATER)
        assert change == {"prefix": "sk-th-Ab12"}

    def test_a_field_that_is_gone_is_taken_away(self) -> None:
        status = _status(ACCEPTED) | {"prefix": "sk-th-Ab12"}
        assert patch(status, _desired(ACCEPTED, prefix=None), LATER) == {"prefix": None}


class TestEvents:
    def test_a_good_object_is_no_event(self) -> None:
        assert notes({}, _desired(ACCEPTED, _live(1, 1))) == []

    def test_a_new_failure_is_a_warning(self) -> None:
        (note,) = notes(_status(ACCEPTED), _desired(CONFLICT))
        assert (note.type, note.reason, note.text) == ("Warning", "Conflict", CONFLICT.message)

    def test_the_same_failure_is_told_once(self) -> None:
        assert notes(_status(CONFLICT), _desired(CONFLICT)) == []

    def test_another_reason_is_told(self) -> None:
        invalid = Condition("Accepted", "False", "Invalid", "no")
        assert len(notes(_status(CONFLICT), _desired(invalid))) == 1

    def test_recovery_is_told(self) -> None:
        (note,) = notes(_status(CONFLICT), _desired(ACCEPTED))
        assert (note.type, note.reason) == ("Normal", "Accepted")

    def test_gateways_that_lag_are_no_event(self) -> None:
        assert notes(_status(_live(1, 1)), _desired(_live(0, 1))) == []


class TestGateways:
    def _slice(self, *endpoints: dict[str, Any]) -> dict[str, Any]:
        return {
            "ports": [{"name": "http", "port": 8080}, {"name": "ops", "port": 9090}],
            "endpoints": list(endpoints),
        }

    def test_ready_endpoints_on_the_ops_port(self) -> None:
        (gateway,) = gateways_of(
            self._slice({"addresses": ["10.0.0.1"], "conditions": {"ready": True}})
        )
        assert gateway.url("/config") == "http://10.0.0.1:9090/config"

    def test_an_address_of_the_sixth_version(self) -> None:
        (gateway,) = gateways_of(self._slice({"addresses": ["fd00::1"]}))
        assert gateway.url("/config") == "http://[fd00::1]:9090/config"

    def test_endpoints_that_are_not_ready_do_not_count(self) -> None:
        endpoint = {"addresses": ["10.0.0.1"], "conditions": {"ready": False}}
        assert gateways_of(self._slice(endpoint)) == []

    def test_a_service_without_an_ops_port_has_no_gateways(self) -> None:
        assert gateways_of({"ports": [], "endpoints": [{"addresses": ["10.0.0.1"]}]}) == []
