"""How much a network holds, without naming every weight: a few numbers, whatever its settings."""

from typing import NamedTuple


class Group(NamedTuple):
    """So many weights of one shape."""

    number: int
    outputs: int
    inputs: int


class Sizes(NamedTuple):
    """All weights of a network, or of several side by side."""

    tables: list[Group]  # whose rows are looked up
    matrices: list[Group]

    @property
    def groups(self) -> list[Group]:
        return self.tables + self.matrices

    @property
    def weights(self) -> int:
        """How many there are."""
        return sum(group.number for group in self.groups)

    @property
    def numbers(self) -> int:
        """How many numbers they hold."""
        return sum(number * outputs * inputs for number, outputs, inputs in self.groups)

    def times(self, networks: int) -> "Sizes":
        """Those of so many networks."""
        return Sizes(
            *(
                [group._replace(number=networks * group.number) for group in groups]
                for groups in self
            )
        )
