"""What every adapter does alike: a module that makes a fixture `adapter` imports these classes under names in Test."""

import pytest

pytest.register_assert_rewrite(
    "tests.contract.conversations", "tests.contract.matrix", "tests.contract.telemetry", "tests.contract.values"
)
