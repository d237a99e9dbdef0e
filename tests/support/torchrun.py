"""Scripts of this folder in several processes."""

import pathlib
import subprocess
import sys

SUPPORT = pathlib.Path(__file__).parent


def launch(script, folder, *arguments, processes=2):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    out = subprocess.run(
        [*torchrun, f"--nproc-per-node={processes}", str(SUPPORT / script), str(folder),
         *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
