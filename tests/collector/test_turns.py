"""Who has the connection next. Pure: the seconds are given."""

from dataclasses import dataclass

from collector.turns import Turns


@dataclass
class Op:
    name: str
    weight: int = 1
    slow: bool = False


class Connection:
    """Takes a millisecond for a transaction, two for a slow one."""

    def __init__(self, room: int = 100) -> None:
        self.now = 0.0
        self.turns: Turns[Op] = Turns(room, lambda: self.now)

    def add(self, *names: str, slow: bool = False, weight: int = 1) -> None:
        for name in names:
            self.turns.add(Op(name, weight, slow))

    def step(self) -> list[str]:
        group = self.turns.next()
        self.now += 0.002 if group[0].slow else 0.001
        if not self.turns:
            self.turns.rest()
        return [op.name for op in group]


def test_what_waits_goes_together_within_what_a_transaction_can_take() -> None:
    connection = Connection(room=100)
    connection.add("a", "b", "c", weight=40)
    assert [connection.step(), connection.step()] == [["a", "b"], ["c"]]


def test_what_is_larger_than_the_room_goes_alone() -> None:
    connection = Connection(room=100)
    connection.add("large", weight=1000)
    connection.add("a")
    assert [connection.step(), connection.step()] == [["large"], ["a"]]


def test_what_is_slow_goes_alone_and_after_what_is_not() -> None:
    connection = Connection()
    connection.add("take 1", "take 2", slow=True)
    connection.add("a", "b")
    assert [connection.step() for _ in range(3)] == [["a", "b"], ["take 1"], ["take 2"]]


def test_under_load_slow_units_get_a_share_of_the_time_and_no_more() -> None:
    connection = Connection()
    connection.add("take", slow=True)
    takes = 0
    for _ in range(10_000):
        connection.add("a")  # somebody always waits
        if connection.step() == ["take"]:
            takes += 1
            connection.add("take", slow=True)
    assert 0.19 < 0.002 * takes / connection.now < 0.21


def test_slow_units_do_not_save_up_for_when_they_come() -> None:
    connection = Connection(room=1)
    connection.add("a")
    for _ in range(1000):
        connection.add("a")  # somebody always waits
        connection.step()
    connection.add("take 1", "take 2", slow=True)
    groups = []
    for _ in range(4):
        connection.add("a")
        groups.append(connection.step())
    assert groups.count(["take 1"]) + groups.count(["take 2"]) == 1


def test_what_is_cleared_waits_no_more() -> None:
    connection = Connection()
    connection.add("a")
    connection.add("take", slow=True)
    assert {op.name for op in connection.turns.clear()} == {"a", "take"}
    assert not connection.turns
