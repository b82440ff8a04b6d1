"""What mutation.py changes in kernels, and what it knows of it by name."""

from mutants import mutants_of
from mutation_targets import EQUIVALENT, TESTS


def test_what_is_known_to_be_equivalent_is_a_mutant():
    names = {mutant.name for kernel in TESTS for mutant in mutants_of(kernel)}
    places = {name.split(":")[0] for name in names}
    listed = {entry for entries in EQUIVALENT.values() for entry in entries}
    assert listed <= names | places


def test_a_formula_has_mutants():
    names = {mutant.name for mutant in mutants_of("formulas")}
    assert "formulas.sub, out: - -> +" in names
    assert "formulas.pow, when: != -> ==" in names
