"""A few kinds of damage that a verification has to find; ``make verify-mutations`` does all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.verify_mutations import DAMAGES, Laboratory

_CHOSEN = (
    "a float's last bit",
    "1.0 made 1 in JSON",
    "a row twice, the key gone",
    "a component's last bit",
    "a collection's distance changed",
    "an original of nobody",
    "a stale sequence",
    "an index that is not valid",
    "a disabled trigger",
    "a disabled trigger of the originals",
    "a dataset taken for regular",
    "an index more",
)


@pytest.fixture(scope="module")
def laboratory(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    found = Laboratory(server_dsn, tmp_path_factory.mktemp("mutations"))
    yield found
    found.close()


@pytest.mark.parametrize("what", _CHOSEN)
def test_damage_is_found_and_mended(laboratory: Laboratory, what: str) -> None:
    (damage,) = [damage for damage in DAMAGES if damage.what == what]
    result = laboratory.examine(damage)
    assert result.problem is None
    assert result.mended is (None if damage.why_not else what != "a collection's distance changed")
