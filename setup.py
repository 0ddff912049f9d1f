"""What pyproject.toml cannot say: the wheel carries the CPU kernels, compiled, and not the demo model's training."""

import importlib.util
import logging
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

log = logging.getLogger("outrider.setup")
_HERE = Path(__file__).parent
_KERNELS = Path("outrider", "kernels", "cpu")
_DISTILLING = ("dataset", "draft_head", "tokenizer", "unrolled")  # what distill/ needs of training/
_X86 = ("x86_64", "AMD64")


def _compiler() -> ModuleType:
    """kernels/cpu/compiler.py, which cannot be imported by its name yet."""
    spec = importlib.util.spec_from_file_location("compiler", _HERE / "src" / _KERNELS / "compiler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Build(build_py):
    """Leaves out and adds."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        if package != "outrider.workers.training":
            return modules
        return [module for module in modules if module[1] in _DISTILLING]

    def run(self) -> None:
        if not self.editable_mode:  # what an earlier build left there would be packed too
            shutil.rmtree(Path(self.build_lib) / "outrider", ignore_errors=True)
        super().run()
        if not self.editable_mode:
            _compile(Path(self.build_lib) / _KERNELS / "shipped")


def _compile(folder: Path) -> None:
    """Without a compiler the wheel is whole all the same: kernels are then built where it is used."""
    compiler = _compiler()
    try:
        command = compiler.find_compiler()
        folder.mkdir(parents=True, exist_ok=True)
        kinds = compiler.INSTRUCTION_SETS if platform.machine() in _X86 else ("plain",)
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(compiler.compile_library, command, isa, folder / compiler.shipped_name(isa))
                for isa in kinds
            ]
        for one in made:
            one.result()
    except compiler.BuildError as error:
        log.warning("the wheel carries no compiled kernels: %s", error)


class Wheel(bdist_wheel):
    """For this platform where kernels were compiled, and for any Python: they are called by ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        shipped = any((Path(self.bdist_dir) / _KERNELS / "shipped").glob("*.so"))
        self.root_is_pure = not shipped
        python, abi, plat = super().get_tag()
        return ("py3", "none", plat) if shipped else (python, abi, plat)


setup(cmdclass={"build_py": Build, "bdist_wheel": Wheel})
