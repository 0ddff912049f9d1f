"""Two stages under load: how busy each is while streams keep both lanes full, from the rounds' own timings.

.venv/bin/python benchmarks/lanes.py [--streams 16] [--tokens 1200]
"""

import argparse
import sys
import threading
import time

from common import prompts, save

from outrider import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1200, help="of each stream: some ten seconds of them")
    parser.add_argument("--speculation", default="auto")
    args = parser.parse_args()
    speculation = int(args.speculation) if args.speculation.isdigit() else args.speculation
    texts = (prompts("code", args.streams) + prompts("prose", args.streams))[: args.streams]
    params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    with LLM("scout", pipeline_parallel_size=2, speculation=speculation, enable_prefix_caching=False) as llm:
        llm.generate(texts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True))
        worker = threading.Thread(target=llm.generate, args=(texts, params))
        worker.start()
        time.sleep(2.5)  # past the prefills, and past a status or two
        first = llm.status()
        last = first
        while worker.is_alive() and (now := llm.status())[0].counters.running == args.streams:
            last = now
            time.sleep(0.05)
        worker.join()
    if last is first:
        sys.exit(f"the streams ended before two looks at them: --tokens {args.tokens} is too few here")
    shares = [(b.busy_s - a.busy_s) / (b.elapsed_s - a.elapsed_s) for a, b in zip(first, last, strict=True)]
    print("  ".join(f"stage {stage}: busy {share:.0%}" for stage, share in enumerate(shares)))
    print("written to", save("lanes", f"benchmarks/lanes.py --streams {args.streams}", {"busy": shares}))


if __name__ == "__main__":
    main()
