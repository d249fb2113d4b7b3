"""README's blocks of code; `python tests/readme_blocks.py` runs those that need one process.

This tests an environment like a new user's, with the package installed and without this checkout.
One block needs the extra `transformers`.
"""

import re
import runpy
import tempfile
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
PYTHON = [body for language, body in BLOCKS if language == "python"]
ALONE = [body for body in PYTHON if "torch.distributed" not in body]
TOGETHER = [body for body in PYTHON if "torch.distributed" in body]
OUTPUTS = [body for language, body in BLOCKS if language == "text"]
COMMANDS = [body.strip() for language, body in BLOCKS if language == "console"]


def run(block: str, folder: Path) -> None:
    """Run a block as a script, since hypothesis reads the source of what it runs."""
    script = folder / "block.py"
    script.write_text(block, encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for block in ALONE:
            run(block, Path(folder))
    print(f"{len(ALONE)} blocks of README run")
