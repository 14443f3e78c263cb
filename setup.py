"""What pyproject.toml cannot say: a built package carries the policies of `checkpoints/`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPolicies(build_py):
    """Copies `checkpoints/` to `rdvla/shipped/`, where `rdvla.hub` looks; an editable install reads the repository."""

    def run(self) -> None:
        """Build the modules, then add the policies."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "rdvla" / "shipped"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(__file__).parent / "checkpoints", target)


setup(cmdclass={"build_py": BuildWithPolicies})
