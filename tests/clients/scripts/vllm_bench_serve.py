"""`vllm bench serve`, with its options. vLLM's CPU package has another name than its command looks itself up by."""

import argparse

from vllm.benchmarks.serve import add_cli_args, main

parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
