"""Benchmarks: every row is checked for correctness first, timed in interleaved rounds, and set beside measured roofs.

    pytest bench/ --benchmark                       # all rows of this machine
    pytest bench/ --benchmark -k "seqpool or cct_2_3x2" --peers ours,eager,compile
    pytest bench/ --benchmark --minutes 30 --resume # a part of them, going on where the run before ended
    python -m bench.roof                            # the roofs alone, by number of threads
    python -m bench.table                           # the README's table from bench/results
    bench/gpu.sh                                    # build, test and measure on a GPU; python -m bench.tune tunes there

A row is one line of JSON in bench/results/<machine>.jsonl: what was computed, each peer's median, p20 and p80 in seconds, the
peers that are missing and why, the roofs of the same run, machine, versions and commit.
"""
