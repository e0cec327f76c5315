"""Who is next: fair, whatever happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from orchestrator.waiting import Waiting, again_after, estimate_s, line_up, next_to_call, positions

callers = st.lists(
    st.builds(
        Waiting,
        id=st.uuids().map(str),
        priority=st.integers(0, 1),
        number=st.integers(0, 1000),
        listens=st.booleans(),
        not_before=st.floats(0, 100),
    ),
    unique_by=(lambda one: one.id, lambda one: one.number),
    max_size=30,
)


def named(*ids: str) -> list[Waiting]:
    return [Waiting(name, 0, number, True) for number, name in enumerate(ids)]


def test_first_come_first_served() -> None:
    queue = line_up(reversed(named("a", "b", "c")))
    assert [one.id for one in next_to_call(queue, 2, 0)] == ["a", "b"]


def test_who_answers_a_question_goes_before_who_talks() -> None:
    queue = line_up([*named("a", "b"), Waiting("answers", 1, 99, True)])
    assert positions(queue) == {"answers": 1, "a": 2, "b": 3}


def test_a_page_that_sleeps_is_passed_over_and_keeps_its_place() -> None:
    asleep = Waiting("a", 0, 0, listens=False)
    queue = line_up([asleep, *[Waiting("b", 0, 1, True)]])
    assert [one.id for one in next_to_call(queue, 1, 0)] == ["b"]
    assert positions(queue) == {"a": 1, "b": 1}  # nobody waits longer because of it
    awake = line_up([Waiting("a", 0, 0, True), Waiting("b", 0, 1, True)])
    assert [one.id for one in next_to_call(awake, 1, 0)] == ["a"]


def test_who_did_not_come_lets_others_have_their_chance() -> None:
    queue = line_up([Waiting("a", 0, 0, True, missed=1, not_before=20), Waiting("b", 0, 1, True)])
    assert [one.id for one in next_to_call(queue, 1, 10)] == ["b"]
    assert [one.id for one in next_to_call(queue, 1, 20)] == ["a"]
    assert [again_after(n) for n in (1, 2, 3)] == [20, 40, 80]
    assert again_after(1000) == again_after(5)


@given(callers, st.integers(-2, 40), st.floats(0, 100))
def test_no_slot_stays_empty_and_none_is_given_twice(waiting: list[Waiting], free: int, now: float) -> None:
    queue = line_up(waiting)
    called = next_to_call(queue, free, now)
    able = [one for one in queue if one.listens and one.not_before <= now]
    assert len(called) == min(max(0, free), len(able))
    assert called == able[: len(called)]  # in order: nobody is overtaken by his equals
    assert set(positions(queue)) == {one.id for one in waiting}


def test_the_wait_is_guessed_from_the_calls_so_far() -> None:
    assert estimate_s(1, 1, []) == 180
    assert estimate_s(4, 2, [100, 200]) == 300
    assert estimate_s(1, 0, [100]) is None
    assert estimate_s(1, 100, [10]) == 1
