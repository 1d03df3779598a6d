"""Coverage-guided fuzzing of decoders: `make fuzz MINUTES=10 ARGS="--at-once 2"`.

Every decoder of the table runs in a fork of its own (`child`), for as many minutes of CPU as
asked, so that a busy machine fuzzes longer and not less; what it learned stays in
`build/fuzz/NAME/corpus` for the next time. An input that breaks one is kept
in `build/fuzz/NAME/crash-*`; copy it to `tests/fuzz/cases/NAME/`, where every test run feeds
it again, and mend the decoder. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fuzz.decoders import CASES, Decoder, every_decoder

ROOT = Path(__file__).parents[2]
ONE_INPUT_S = 10  # longer than this is a hang
# A fork's time at once: what atheris keeps for itself of every comparison with numpy's arrays (22
# bytes each) would else be taken for the decoder's memory.
FORK_S = 100
ENOUGH = 0.98  # of the CPU time asked for; starting and ending takes a little
RSS_MB = 2048
LONGEST_BYTES = 4096
MISSING = (
    "atheris is not installed; `pip install atheris` (Linux, CPython 3.11 or newer) or extra `fuzz`"
)


@dataclass(frozen=True)
class Outcome:
    """What one decoder went through."""

    name: str
    cpu_s: float
    executions: int
    inputs_kept: int  # that reached something new
    verdict: str  # "ok", or the end of what was said
    crash: str = ""


def installed() -> bool:
    """Whether atheris is there."""
    return importlib.util.find_spec("atheris") is not None


class Fuzzer:
    """A process that fuzzes one decoder after the other. Use as a context manager."""

    def __enter__(self) -> Fuzzer:
        memory = Path("/dev/shm")  # decoders of files write thousands of them a second
        where = memory if os.access(memory, os.W_OK) else None
        self._place = tempfile.TemporaryDirectory(prefix="smalltalk-fuzz-", dir=where)
        path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fuzz.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A library's panic would be written with all of its stack, for seconds.
            env={
                **os.environ,
                "PYTHONPATH": path,
                "TMPDIR": self._place.name,
                "RUST_BACKTRACE": "0",
            },
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate()  # it ends with its input
        self._place.cleanup()

    def fuzz(
        self, decoder: Decoder, folder: Path, seconds: int = 0, executions: int = 0
    ) -> Outcome:
        """Fuzz one decoder for so many CPU seconds, or so often; whichever is over first.

        0: no limit. Time is given to libFuzzer by the clock, again and again until the CPU time
        is reached; it finds what it learned in its corpus.
        """
        corpus, log = folder / "corpus", folder / "log"
        done, spent_s, code, said = 0, 0.0, "0", ""
        while code == "0" and not (done and (not seconds or spent_s >= ENOUGH * seconds)):
            times = min(FORK_S, max(1, round(seconds - spent_s)))
            code, took_s = self._do(
                {"name": decoder.name, "log": str(log)}
                | {
                    "flags": [
                        *_inputs(decoder, folder),
                        *(f"-timeout={ONE_INPUT_S}", f"-rss_limit_mb={RSS_MB}"),
                        "-print_final_stats=1",
                        *([f"-max_total_time={times}"] if seconds else []),
                        *([f"-runs={executions - done}"] if executions else []),
                    ]
                }
            )
            said = log.read_text(errors="replace")
            done += _last_number(r"^stat::number_of_executed_units: *(\d+)", said)
            spent_s += took_s
            if executions and done >= executions:
                break
        return Outcome(
            decoder.name,
            round(spent_s, 1),
            done,
            sum(1 for _ in corpus.iterdir()),
            "ok" if code == "0" else _why(said),
            next(iter(re.findall(r"Test unit written to (\S+)", said)), ""),
        )

    def _do(self, order: dict[str, Any]) -> tuple[str, float]:
        """Returns the exit code, or what happened instead, and the CPU seconds."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        code, _, took_s = self._child.stdout.readline().partition(" ")
        return (code, float(took_s)) if took_s else ("the fuzzing process ended", 0.0)


def _inputs(decoder: Decoder, folder: Path) -> list[str]:
    """Where inputs come from and go to."""
    for name in ("corpus", "seeds"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*decoder.seeds, *decoder.cases)):
        (folder / "seeds" / str(number)).write_bytes(seed)
    words = _dictionary(decoder)
    (folder / "words").write_text(words)
    longest = max([LONGEST_BYTES, *(2 * len(seed) for seed in decoder.seeds)])
    return [
        *(str(folder / "corpus"), str(folder / "seeds")),
        *(f"-artifact_prefix={folder}/", f"-max_len={longest}", "-len_control=0"),
        *([f"-dict={folder / 'words'}"] if words else []),
    ]


def _dictionary(decoder: Decoder) -> str:
    """Words of the seeds, which libFuzzer puts in here and there."""
    words = {
        word for seed in decoder.seeds for word in re.findall(rb"[A-Za-z_][\w/.-]{2,30}", seed)
    }
    return "".join(f'"{word.decode("ascii", "ignore")}"\n' for word in sorted(words)[:200])


def _last_number(pattern: str, said: str) -> int:
    found = re.findall(pattern, said, re.MULTILINE)
    return int(found[-1]) if found else 0


def _why(said: str) -> str:
    lines = [line.strip() for line in said.splitlines()]
    marked = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|Version)\b", line)]
    errors = [line for line in lines if "ERROR" in line]
    return (marked or errors or lines or ["it left no word"])[-1][:200]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("names", nargs="*", help="decoders; all if none is named")
    parser.add_argument("--minutes", type=float, default=10.0, help="of CPU, for each decoder")
    parser.add_argument("--executions", type=int, default=0, help="at most, for each decoder")
    parser.add_argument("--at-once", type=int, default=1, help="so many decoders at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    table = every_decoder()
    odd = [name for name in options.names if name not in table]
    if odd or not installed():
        names = ", ".join(table)
        print(f"there is no decoder '{odd[0]}'; there are: {names}" if odd else MISSING)
        return 2
    chosen = [table[name] for name in options.names or table]

    left: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    for decoder in chosen:
        left.put(decoder)

    def work(_: int) -> bool:
        good = True
        with Fuzzer() as fuzzer, contextlib.suppress(queue.Empty):
            while True:
                decoder = left.get_nowait()
                folder = options.out / decoder.name.replace(" ", "-")
                seconds = max(1, round(60 * options.minutes))
                outcome = fuzzer.fuzz(decoder, folder, seconds, options.executions)
                good = good and outcome.verdict == "ok"
                _tell(outcome, options.json)
        return good

    with ThreadPoolExecutor(options.at_once) as pool:
        good = all(list(pool.map(work, range(options.at_once))))
    return 0 if good else 1


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(outcome)), flush=True)
        return
    counts = f"{outcome.executions:>10,} executions in {outcome.cpu_s:>6} s of CPU"
    print(f"{outcome.name:<28} {counts}  {outcome.verdict}", flush=True)
    if outcome.crash:
        folder = CASES / outcome.name.replace(" ", "-")
        print(f"    keep it: mkdir -p {folder} && cp {outcome.crash} {folder}/", flush=True)


if __name__ == "__main__":
    sys.exit(main())
