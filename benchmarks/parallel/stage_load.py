"""Two stages under load: how busy each is while streams keep both lanes full, from the rounds' own timings.

python benchmarks/parallel/stage_load.py [--streams 16] [--tokens 1200] [--speculation off,auto]
"""

import argparse
import shlex
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the repository's root, where `benchmarks` is
from benchmarks.common.arguments import words
from benchmarks.common.prompts import prompts
from benchmarks.common.results import save
from outrider import LLM, SamplingParams


def busy(speculation: str, streams: int, tokens: int) -> list[float]:
    """The share of time that each of two stages computed while all streams ran."""
    texts = (prompts("code", streams) + prompts("prose", streams))[:streams]
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    ceiling = int(speculation) if speculation.isdigit() else speculation
    with LLM("scout", pipeline_parallel_size=2, speculation=ceiling, enable_prefix_caching=False) as llm:
        llm.generate(texts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
        worker = threading.Thread(target=llm.generate, args=(texts, params))
        worker.start()
        time.sleep(2.5)  # past the prefills, and past a status or two
        first = last = llm.status()
        while worker.is_alive() and (now := llm.status())[0].counters.running == streams:
            last = now
            time.sleep(0.05)
        worker.join()
    if last is first:
        sys.exit(f"the streams ended before two looks at them: --tokens {tokens} is too few here")
    return [(b.busy_s - a.busy_s) / (b.elapsed_s - a.elapsed_s) for a, b in zip(first, last, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1200, help="of each stream: some ten seconds of them")
    parser.add_argument("--speculation", type=words, default=["off", "auto"])
    args = parser.parse_args()
    shares = {}
    for speculation in args.speculation:
        shares[speculation] = busy(speculation, args.streams, args.tokens)
        stages = "  ".join(f"stage {stage}: busy {share:.0%}" for stage, share in enumerate(shares[speculation]))
        print(f"speculation {speculation:>4}  {stages}")
    command = f"benchmarks/parallel/stage_load.py {shlex.join(sys.argv[1:])}".strip()
    print("written to", save("lanes", command, {"streams": args.streams, "busy": shares}))


if __name__ == "__main__":
    main()
