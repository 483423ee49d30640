"""Kill a training again and again, and see whether anything is lost.

    python -m tools.kill_drill --kills 50 --ranks 2 -- --config conf/trainer/cpu.yaml \
        --config conf/runs/lm_shakespeare.yaml --trainer.strategy fsdp --trainer.max_steps 60 \
        --checkpoint.every_n_train_steps 3

What stands behind `--` is a training of `mhmoe-mm fit`. It is carried out once without
disturbance, and once with `--ckpt_path auto` while all its processes are killed (SIGKILL) at random
moments: every second time just as a checkpoint is being written, otherwise somewhere in the first
seconds of training. In the end both must have the same weights to the bit and must have
logged the same figures at every step: no sample is lost, none is read twice.
"""

import argparse
import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from mhmoe_mm.command_line.resume import newest_whole
from mhmoe_mm.storage.checkpoint_io import read_any, read_plain
from mhmoe_mm.storage.whole import PART, write_text
from tools.build_shards.errors import InputError, run_reporting

PROGRAM = "from mhmoe_mm.cli import main; main()"
CALM, KILLED = "calm", "killed"
"""Names of the two runs."""
LIMIT_S = 3600.0
MOST_SAVES, DELAY_S = 3, 0.05
"""A kill that waits for a checkpoint takes one of the first so many, this soon after it began."""
WINDOW_S = 4.0
"""Another comes within so many seconds of training."""


@dataclass
class Drill:
    """What came of it."""

    kills: int = 0
    while_saving: int = 0
    """Kills while a checkpoint was being written."""
    before_training: int = 0
    """Kills before the first step of a start."""
    resumed_from: list[int] = field(default_factory=list)
    """The step of the newest whole checkpoint after every kill; 0 where there was none yet."""
    seconds: float = 0.0
    steps: int = 0
    same_weights: bool = False
    same_figures: bool = False
    """Whether every logged figure of training is that of the calm run, to the last digit."""


class Ranks:
    """The processes of a training."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]):
        self.processes = processes

    @property
    def alive(self) -> bool:
        """Whether all of them are."""
        return all(process.poll() is None for process in self.processes)

    def wait(self, limit_s: float) -> int | str:
        """The first exit status that is not 0, or 0; or that there was no end."""
        end = time.monotonic() + limit_s
        try:
            found = [process.wait(end - time.monotonic()) for process in self.processes]
        except subprocess.TimeoutExpired:
            return f"no end within {limit_s:.0f} s"
        return next((status for status in found if status), 0)

    def kill(self) -> None:
        """End all of them at once, with what they started, and wait until they are gone."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


class Run:
    """One of the two trainings, in the folder of both."""

    def __init__(self, name: str, folder: Path, ranks: int, command: Sequence[str]):
        self.name, self.ranks = name, ranks
        self.place = folder / name
        self.log = folder / f"{name}.log"
        self.command = [
            *("fit", *command, "--name", name, "--trainer.default_root_dir", str(folder)),
            *("--trainer.devices", str(ranks), "--ckpt_path", "auto"),
        ]

    def start(self) -> "Ranks":
        """All ranks; each is the leader of a group of processes, so that none is left behind."""
        common = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        found = []
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            for rank in range(self.ranks):
                own = {"LOCAL_RANK": str(rank), "NODE_RANK": "0"} if self.ranks > 1 else {}
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, *self.command],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=os.environ | common | own,
                    start_new_session=True,
                )
                found.append(process)
        return Ranks(found)

    def finish(self) -> None:
        """Run to the end; InputError with the last lines of the log where it does not get there."""
        ranks = self.start()
        try:
            status = ranks.wait(LIMIT_S)
        finally:
            ranks.kill()
        if status != 0:
            last = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
            raise InputError(f"The training failed (status {status}): see {self.log}.\n{last}")

    @property
    def versions(self) -> int:
        """Starts that came as far as a folder of their own."""
        return len(list(self.place.glob("version_*")))

    def saving(self, version: int) -> bool:
        """Whether this start is writing a checkpoint."""
        return any(self.place.glob(f"version_{version}/checkpoints/*{PART}"))

    def figures(self) -> dict[int, dict[str, str]]:
        """What training logged, by step; of a step that was made again, the last."""
        found: dict[int, dict[str, str]] = {}
        paths = self.place.glob("version_*/metrics.csv")
        for path in sorted(paths, key=lambda path: int(path.parent.name.split("_")[1])):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    own = {k: v for k, v in row.items() if k and k.startswith("train/") and v}
                    if own:
                        found[int(row["step"])] = own
        return found

    def newest(self) -> Path | None:
        return newest_whole(self.place)


def drill(calm: Run, killed: Run, kills: int, seed: int, tell: Console) -> Drill:
    """Carry both out."""
    found, draw, begun = Drill(), random.Random(seed), time.monotonic()
    tell.print(f"{calm.name}: a training without disturbance")
    calm.finish()
    for number in range(kills):
        # None: no matter what is being done then.
        saves = draw.randint(1, MOST_SAVES) if number % 2 == 0 else None
        delay = draw.uniform(0, DELAY_S if saves else WINDOW_S)
        version = killed.versions
        ranks = killed.start()
        came, begun_here = until(ranks, killed, version, saves, delay)
        saving = killed.saving(version)
        ranks.kill()
        if not came:
            tell.print(f"the training ended after {number} of {kills} kills: give it more steps")
            break
        found.kills += 1
        found.while_saving += saving
        found.before_training += not begun_here
        found.resumed_from.append(step_of(killed.newest()))
        tell.print(
            f"kill {number + 1}: {'while saving' if saving else 'elsewhere'}; "
            f"goes on from step {found.resumed_from[-1]}"
        )
    killed.finish()
    found.seconds = time.monotonic() - begun
    return compared(found, calm, killed)


def until(
    ranks: Ranks, run: Run, version: int, saves: int | None, delay: float
) -> tuple[bool, bool]:
    """Wait for the moment: `delay` seconds into that save, or into the training. Whether it came
    while all ranks were alive, and whether training had begun.
    """
    seen, saving, end, begun = 0, False, None, False
    while ranks.alive:
        begun = begun or run.versions > version
        before, saving = saving, run.saving(version)
        seen += saving and not before
        if end is None and (seen == saves if saves else begun):
            end = time.monotonic() + delay
        if end is not None and time.monotonic() >= end:
            return True, begun
        time.sleep(0.001)
    return False, begun


def compared(found: Drill, calm: Run, killed: Run) -> Drill:
    """Fill in whether both came to the same."""
    ends = [run.newest() for run in (calm, killed)]
    if ends[0] is None or ends[1] is None:
        raise InputError("A training ended without a checkpoint: see --checkpoint in the command.")
    one, other = (read_any(path, weights_alone=True)["state_dict"] for path in ends if path)
    found.steps = step_of(ends[0])
    found.same_weights = one.keys() == other.keys() and all(
        torch.equal(weight, other[name]) for name, weight in one.items()
    )
    expected, seen = calm.figures(), killed.figures()
    # The figures of steps after a kill's last flush are lost with the process, the steps are not.
    found.same_figures = bool(seen) and all(
        expected.get(step) == figures for step, figures in seen.items()
    )
    return found


def step_of(path: Path | None) -> int:
    """The step of a checkpoint; 0 without one."""
    return 0 if path is None else int(read_plain(path)["global_step"])


def free_port() -> int:
    """One that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def report(found: Drill, tell: Console) -> None:
    """As a table."""
    table = Table("", "", show_header=False)
    table.add_row("kills", f"{found.kills}, {found.while_saving} while saving")
    table.add_row("resumed from step", " ".join(str(step) for step in found.resumed_from))
    table.add_row("steps of the training", str(found.steps))
    table.add_row("same weights, to the bit", "yes" if found.same_weights else "NO")
    table.add_row("same figures at every step", "yes" if found.same_figures else "NO")
    table.add_row("minutes", f"{found.seconds / 60:.1f}")
    tell.print(table)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.kill_drill",
        description="Kill a training again and again, and see whether anything is lost.",
        usage="%(prog)s [--kills N] [--ranks N] [--seed N] [--out DIR] -- OPTIONS OF mhmoe-mm fit",
    )
    parser.add_argument("--kills", type=int, default=50, help="how often (default 50)")
    parser.add_argument("--ranks", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--out", type=Path, default=Path("runs/kill_drill"), help="a new folder")
    parser.add_argument("command", nargs="+", help="behind --: the options of `mhmoe-mm fit`")
    return parser.parse_args(argv)


def work(argv: Sequence[str]) -> int:
    given = arguments(argv)
    if given.kills < 1 or given.ranks < 1:
        raise InputError("--kills and --ranks are 1 or more.")
    if given.out.exists():
        raise InputError(f"{given.out} is there already: name a new folder with --out.")
    tell = Console()
    calm, killed = (Run(name, given.out, given.ranks, given.command) for name in (CALM, KILLED))
    found = drill(calm, killed, given.kills, given.seed, tell)
    write_text(given.out / "drill.json", json.dumps(asdict(found), indent=1) + "\n")
    report(found, tell)
    return 0 if found.same_weights and found.same_figures else 1


def main(argv: Sequence[str] | None = None) -> int:
    """0 if nothing was lost, 1 if something was, 2 for bad input."""
    given = sys.argv[1:] if argv is None else argv
    return run_reporting(lambda: work(given), "Interrupted: the trainings are as they are.")


if __name__ == "__main__":
    sys.exit(main())
