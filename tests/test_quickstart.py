"""examples/quickstart.ipynb runs from its first cell to its last, and what it says is so; its stored outputs are clean.

`python tests/test_quickstart.py` runs it at its full size and stores the outputs.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

PATH = Path(__file__).parents[1] / "examples/quickstart.ipynb"
GAINS = re.compile(r"(before|after): +gain ([+-][\d.]+) nats .*? answer right (\d+)%")


def executed(environment: dict[str, str]) -> Any:
    """The notebook, run by this very Python, offline, in its own folder."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisPython(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
            )

    notebook = nbformat.read(PATH, 4)
    here = {"metadata": {"path": PATH.parent}}
    client = NotebookClient(notebook, timeout=600, kernel_manager_class=ThisPython, resources=here, record_timing=False)
    client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment})
    return notebook


def said(notebook: Any) -> str:
    """All text that the cells put out."""
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    return "\n".join(out.get("text", "") + out.get("data", {}).get("text/plain", "") for out in outputs)


def pictures(notebook: Any) -> list[str]:
    outputs = [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]
    return [out.data["image/png"] for out in outputs if "image/png" in out.get("data", {})]


def check_claims(notebook: Any, least: float) -> None:
    text = said(notebook)
    direct, steps, humming = (float(number) for number in re.findall(r"log p = +(-?[\d.]+)", text))
    assert steps > direct + 1.5 and humming < steps - 1.5, "worked steps do not help as the notebook says"
    found = {when: (float(gain), int(right)) for when, gain, right in GAINS.findall(text)}
    assert found["before"][0] < 0.3, "before training the thoughts help already"
    assert found["after"][0] > found["before"][0] + least, "training did not raise the gain"
    assert len(pictures(notebook)) == 1


def test_stored_outputs_are_there_and_clean() -> None:
    notebook = nbformat.read(PATH, 4)
    nbformat.validate(notebook)
    check_claims(notebook, least=1.5)
    text = said(notebook)
    for dirt in ("/tmp/", "/home/", "/root/", "/work/", "Warning", "it/s]", "Traceback", "\x1b["):
        assert dirt not in text, f"the stored outputs hold {dirt!r}"
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert PATH.stat().st_size < 200_000


@pytest.mark.slow
def test_notebook_runs_and_its_claims_hold() -> None:
    check_claims(executed({"QUICKSTART_STEPS": "30", "QUICKSTART_ROWS": "128"}), least=0.5)


if __name__ == "__main__":
    nbformat.write(executed({}), PATH)
