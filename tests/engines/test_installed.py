"""Packages that only some engines need."""

import subprocess
import sys

import pytest


def test_openvino_reports_nothing_to_anybody():
    pytest.importorskip("openvino")
    code = (
        "from meditune.engines.exported_model import package\n"
        "package('openvino', 'openvino.tools.ovc')\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "print(telemetry_utils.tm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("telemetry_stub")
