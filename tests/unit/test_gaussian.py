from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.special import expit

from learner.belief.gaussian import sigmoid


def test_sigmoid_is_that_of_scipy_to_a_few_units_in_the_last_place() -> None:
    z = np.concatenate([[0.0, -0.0, 40.0, -40.0, 800.0, -800.0, np.inf, -np.inf], np.linspace(-750.0, 750.0, 100_001)])
    np.testing.assert_array_max_ulp(sigmoid(z), expit(z), maxulp=4)
    assert sigmoid(np.array(0.0)) == 0.5
    assert np.isnan(sigmoid(np.array(np.nan)))


@pytest.mark.parametrize("modules", ["service.web.app", "service.commands.main, service.worker"])
def test_a_scorer_does_not_import_scipy_special(modules: str) -> None:
    code = f"import sys, {modules}; print('scipy.special' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
