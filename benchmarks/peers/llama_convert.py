"""Runs llama.cpp's converter on a DeepSeek-V3 checkpoint that it does not know, its MTP layer included.

    .envs/transformers/bin/python llama_convert.py SOURCE CHECKPOINT --outfile FILE.gguf --outtype f32|bf16|q8_0

SOURCE is llama.cpp's source tree; the rest goes to its convert_hf_to_gguf.py. Two things are answered here that the
converter refuses to guess: the tokenizer is cut up as DeepSeek-V3's (it knows tokenizers by a hash of their ids), and
the MTP layer is kept (llama.cpp runs one for other models of this architecture, and drops it for DeepSeek-V3).
"""

import runpy
import sys
from pathlib import Path
from typing import Any


def teach(source: Path) -> None:
    """Makes the converter of the tree at `source`, once imported, know what this file's docstring tells."""
    sys.path[:0] = [str(source), str(source / "gguf-py")]
    import conversion
    from conversion.base import TextModel
    from conversion.glm import Glm4MoeLiteModel

    class DeepseekV3WithMtp(Glm4MoeLiteModel):
        """The model of this architecture whose MTP layer the converter keeps, with DeepSeek-V3's vocabulary."""

        model_arch = Glm4MoeLiteModel.model_arch

        def set_vocab(self) -> None:
            self._set_vocab_gpt2()

    known = conversion.get_model_class

    def model_class(name: str, *args: Any, **kwargs: Any) -> Any:
        return DeepseekV3WithMtp if name == "DeepseekV3ForCausalLM" else known(name, *args, **kwargs)

    conversion.get_model_class = model_class
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "deepseek-v3"


def main() -> None:
    source = Path(sys.argv[1])
    teach(source)
    script = source / "convert_hf_to_gguf.py"
    sys.argv = [str(script), *sys.argv[2:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
