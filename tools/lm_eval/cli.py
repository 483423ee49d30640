"""Evaluate a trained language model on tasks of lm-evaluation-harness.

    python -m tools.lm_eval --model runs/NAME/version_0 --tasks arc_easy,hellaswag --out scores.json

The tasks, their metrics and the table are those of the harness (pip install 'mhmoe-mm[lm-eval]');
--include-path adds tasks of your own. Nothing is downloaded: the data must be in the cache of the
datasets package (HF_HOME), unless you set HF_DATASETS_OFFLINE=0.
"""

import argparse
import difflib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mhmoe_mm.language_model import AT_A_TIME, LanguageModel
from mhmoe_mm.storage.whole import write_text
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from tools.build_shards.errors import InputError, run_reporting, some
from tools.trained_model import load_model

SEED = 1234
"""That of the harness."""
RESAMPLES = 1000
"""Of which a standard error of a perplexity or a BLEU is itself known to two or three percent."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run lm_eval; returns the exit code."""
    given = _parser().parse_args(argv)
    return run_reporting(lambda: _run(given), "Interrupted; no results were written.")


def _run(given: argparse.Namespace) -> int:
    if given.out is not None and not given.out.parent.is_dir():
        raise InputError(f"{given.out.parent}, the folder of --out, does not exist.")
    positive = {
        "--limit": given.limit,
        "--batch-size": given.batch_size,
        "--bootstrap-iters": given.bootstrap_iters,
    }
    for name, number in positive.items():
        if number is not None and number <= 0:
            raise InputError(f"{name} is more than 0, got {number}.")
    # Read when the harness is imported, which is why that comes only now. Without the last one, its
    # standard errors come from processes forked beside torch's threads, which may wait for ever.
    for name in ("HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "DISABLE_MULTIPROC"):
        os.environ.setdefault(name, "1")
    try:
        import lm_eval.evaluator
        import lm_eval.utils
    except ImportError as error:
        raise InputError(
            f"lm-evaluation-harness is missing ({error}): pip install 'mhmoe-mm[lm-eval]'."
        ) from error
    from tools.lm_eval.adapter import HarnessModel

    asked = HarnessModel(_language_model(given), str(given.model))
    manager, names = _tasks(given.tasks, given.include_path)
    try:
        results: dict[str, Any] = lm_eval.evaluator.simple_evaluate(
            asked,
            tasks=names,
            task_manager=manager,
            num_fewshot=given.num_fewshot,
            batch_size=given.batch_size,
            device=given.device,
            limit=given.limit,
            gen_kwargs=given.gen_kwargs,
            bootstrap_iters=given.bootstrap_iters,
            log_samples=given.samples,
            random_seed=given.seed,
            numpy_random_seed=given.seed,
            torch_random_seed=given.seed,
            fewshot_random_seed=given.seed,
        )
    except OSError as error:
        raise InputError(
            f"The data of a task are not at hand: {_line(error)}. Set HF_HOME to the cache that "
            "has them, or HF_DATASETS_OFFLINE=0 to let the datasets package download them."
        ) from error
    except ValueError as error:
        raise InputError(f"The tasks cannot be carried out: {_line(error)}.") from error
    print(lm_eval.utils.make_table(results))
    if results.get("groups"):
        print(lm_eval.utils.make_table(results, "groups"))
    if asked.unknown:
        print(
            f"{asked.unknown:,} of {asked.tokens:,} tokens of these tasks are <unk>: the model's "
            "tokenizer cannot spell all of their texts."
        )
    if given.out is not None:
        plain = lm_eval.utils.handle_non_serializable
        write_text(given.out, json.dumps(results, indent=1, ensure_ascii=False, default=plain))
        print(f"All of it is in {given.out}.")
    return 0


def _language_model(given: argparse.Namespace) -> LanguageModel:
    model = load_model(given.model, LanguageModeling, given.device, given.plugin)
    tokenizer = model.language.tokenizer
    return LanguageModel(model.language.net, tokenizer, model.source, given.batch_size)


def _tasks(asked: str, include_path: Path | None) -> tuple[Any, list[str]]:
    """(the harness's task manager, the names of the tasks that are asked for)."""
    from lm_eval.tasks import TaskManager

    names = [name.strip() for name in asked.split(",") if name.strip()]
    if not names:
        raise InputError("--tasks names no task.")
    if include_path is not None:
        if not include_path.is_dir():
            raise InputError(f"{include_path} of --include-path is not a folder.")
        own = TaskManager(include_path=str(include_path), include_defaults=False)
        # Where all tasks are in the folder, the ten thousand of the harness need not be read.
        if set(names) <= set(own.all_subtasks):
            return own, names
    manager = TaskManager(include_path=include_path and str(include_path))
    found = {name: manager.match_tasks([name]) for name in names}
    if missing := [name for name, matches in found.items() if not matches]:
        near = difflib.get_close_matches(missing[0], manager.all_tasks)
        hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them."
        raise InputError(f"--tasks: there is no task {some(missing)}; {hint}")
    return manager, list(dict.fromkeys(name for matches in found.values() for name in matches))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.lm_eval", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--model", required=True, metavar="RUN_OR_FILE", help="a run, or a checkpoint of one")
    add("--tasks", required=True, metavar="A,B", help="tasks and groups; xnli_* takes all such")
    add("--include-path", "--include_path", type=Path, metavar="DIR", help="tasks of your own")
    add("--num-fewshot", "--num_fewshot", type=int, metavar="N", help="solved examples before each")
    add("--limit", type=float, metavar="N", help="only the first N of each task; below 1: a share")
    add(
        "--batch-size", "--batch_size", type=int, default=AT_A_TIME, metavar="N",
        help=f"requests that go through the network together ({AT_A_TIME})",
    )  # fmt: skip
    add("--gen-kwargs", "--gen_kwargs", metavar="A=B,C=D", help="instead of those of the tasks")
    add(
        "--bootstrap-iters", "--bootstrap_iters", type=int, default=RESAMPLES, metavar="N",
        help=f"resamples for standard errors that have no formula ({RESAMPLES})",
    )  # fmt: skip
    add("--seed", type=int, default=SEED, help=f"of drawn examples and texts ({SEED})")
    add("--device", default="cpu", help="where the model computes (cpu)")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    add("--out", type=Path, metavar="FILE.json", help="all results")
    add("--samples", action="store_true", help="with every example and answer in --out")
    return parser
