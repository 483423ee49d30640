"""The command's figures are recounted by hand, from a local task of every kind."""

import json
import math
import re
import shlex
import statistics
import sys
from pathlib import Path

import pytest
import yaml

import mhmoe_mm
from tests.language import LINE
from tests.test_readme import ROOT, commands
from tools.lm_eval.cli import main

DOCS = [
    {"before": "so much for", "choices": ["that", "thou art"], "label": 0},
    {"before": "so much for", "choices": ["zebra", "that", "this"], "label": 1},
    {"before": "so", "choices": ["much", "more of the same"], "label": 1},
    {"before": "", "choices": ["so", "zq"], "label": 0},
    {"before": LINE + " and " + LINE, "choices": ["and", "much"], "label": 1},
]
ROWS = [{**doc, "text": doc["before"] + " a cat", "word": doc["choices"][0]} for doc in DOCS]
KINDS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": ["acc", "acc_norm"],
    },
    "word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{before}} ",
        "doc_to_target": "{{word}}",
        "metric_list": ["perplexity", "acc"],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    },
    "writes": {
        "output_type": "generate_until",
        "doc_to_text": "{{before}} ",
        "doc_to_target": "{{word}}",
        "generation_kwargs": {"until": [" ", "\n"], "max_gen_toks": 11, "do_sample": False},
        "metric_list": ["exact_match"],
    },
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of local tasks, one of each kind, with their data."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    for name, kind in KINDS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(folder / "rows.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            "doc_to_text": "{{before}}",
            **kind,
            "metric_list": [{"metric": metric} for metric in kind["metric_list"]],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(scope="module", autouse=True)
def offline():
    pytest.importorskip("lm_eval")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
            patch.setenv(name, "1")
        yield


@pytest.fixture(scope="module")
def results(language_run: Path, own: Path) -> dict:
    out = own / "scores.json"
    tasks = ",".join(KINDS)
    options = ["--include_path", str(own), "--batch-size", "3", "--out", str(out), "--samples"]
    assert main(["--model", str(language_run), "--tasks", tasks, *options]) == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def model(language_run: Path):
    return mhmoe_mm.load(language_run)


def test_the_best_choice_is_counted(model, results):
    likelihoods = [
        model.log_likelihood([" " + choice for choice in row["choices"]], row["before"])
        for row in ROWS
    ]
    best = [values.index(max(values)) for values in likelihoods]
    by_letter = [
        [value / len(choice) for value, choice in zip(values, row["choices"], strict=True)]
        for values, row in zip(likelihoods, ROWS, strict=True)
    ]
    best_by_letter = [values.index(max(values)) for values in by_letter]
    label = [row["label"] for row in ROWS]
    found = results["results"]["choice"]
    right = [mine == true for mine, true in zip(best, label, strict=True)]
    right_by_letter = [mine == true for mine, true in zip(best_by_letter, label, strict=True)]
    assert found["acc,none"] == pytest.approx(statistics.mean(right))
    assert found["acc_norm,none"] == pytest.approx(statistics.mean(right_by_letter))
    assert 0 < found["acc,none"] < 1
    samples = sorted(results["samples"]["choice"], key=lambda sample: sample["doc_id"])
    for sample, values in zip(samples, likelihoods, strict=True):
        told = [response[0][0] for response in sample["resps"]]
        assert told == pytest.approx(values, rel=1e-4, abs=1e-5)


def test_a_word_s_perplexity_is_that_of_its_log_likelihoods(model, results):
    each = [model.log_likelihood(" " + row["word"], row["before"]) for row in ROWS]
    found = results["results"]["word"]
    assert found["perplexity,none"] == pytest.approx(math.exp(-statistics.mean(each)), rel=1e-4)
    greedy = [
        model.generate(row["before"], len(row["word"]) + 1, temperature=0) == " " + row["word"]
        for row in ROWS
    ]
    assert found["acc,none"] == pytest.approx(statistics.mean(greedy))
    assert 0 < found["acc,none"] < 1


def test_documents_are_predicted_whole(model, results):
    texts = [row["text"] for row in ROWS]
    nats = sum(one.nats for one in model.perplexity(texts))
    num_words = sum(len(re.split(r"\s+", text)) for text in texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    found = results["results"]["rolling"]
    assert found["word_perplexity,none"] == pytest.approx(math.exp(nats / num_words), rel=1e-4)
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(nats / num_bytes), rel=1e-4)
    assert found["bits_per_byte,none"] == pytest.approx(nats / num_bytes / math.log(2), rel=1e-4)


def test_written_texts_are_compared(model, results):
    written = [
        model.generate(row["before"][-11:] + " ", 11, temperature=0, stop=[" ", "\n"])
        for row in ROWS
    ]
    right = [text == row["word"] for text, row in zip(written, ROWS, strict=True)]
    assert results["results"]["writes"]["exact_match,none"] == pytest.approx(statistics.mean(right))
    assert 0 < statistics.mean(right) < 1


def test_the_results_say_of_which_model_and_how(results, language_run):
    config = results["config"]
    assert config["model"] == str(language_run)
    assert (config["batch_size"], config["unknown_tokens"], config["max_length"]) == (3, 0, 23)
    assert results["n-samples"]["writes"] == {"original": len(ROWS), "effective": len(ROWS)}


def test_the_table_shows_the_first_examples_and_what_cannot_be_spelled(
    language_run, tmp_path, capsys
):
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "so 4"}, {"text": "so"}]))
    task = {
        "task": "digits",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(tmp_path / "rows.json")},
            "cache_dir": str(tmp_path / "cache"),
        },
        "test_split": "test",
        **KINDS["rolling"],
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(task))
    options = ["--include-path", str(tmp_path), "--limit", "1"]
    assert main(["--model", str(language_run), "--tasks", "digits", *options]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\|digits *\|.*\|bits_per_byte *\|", said)
    assert "1 of 5 tokens of these tasks are <unk>" in said


def test_the_commands_of_the_documentation_name_tasks_that_exist(language_run, capsys):
    ready = [shlex.split(line) for line in commands(ROOT / "docs/language_models.md")]
    named = [line[line.index("--tasks") + 1] for line in ready if "tools.lm_eval" in line]
    assert len(named) >= 2
    tasks = ",".join([*named, "arc_esy"])
    assert main(["--model", str(language_run), "--tasks", tasks]) == 2
    assert "there is no task arc_esy; did you mean arc_easy" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--tasks", ","], "--tasks names no task"),
        (["--tasks", "choice", "--include-path", "nowhere"], "nowhere of --include-path is not a"),
        (["--tasks", "choice", "--limit", "0"], "--limit is more than 0, got 0"),
        (["--tasks", "choice", "--batch-size", "-1"], "--batch-size is more than 0, got -1"),
        (["--tasks", "choice", "--out", "nowhere/a.json"], "nowhere, the folder of --out, does"),
        (["--tasks", "choice", "--model", "nowhere"], "No such checkpoint: nowhere"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_refused(language_run, options, why, capsys):
    assert main(["--model", str(language_run), *options]) == 2
    assert why in capsys.readouterr().err


def test_data_that_are_not_here_are_not_fetched(language_run, own, tmp_path, capsys):
    task = yaml.safe_load((own / "word.yaml").read_text())
    task |= {"dataset_path": "nobody/nothing", "dataset_kwargs": {"cache_dir": str(tmp_path)}}
    (tmp_path / "word.yaml").write_text(yaml.safe_dump(task))
    options = ["--tasks", "word", "--include-path", str(tmp_path)]
    assert main(["--model", str(language_run), *options]) == 2
    said = capsys.readouterr().err
    assert "The data of a task are not at hand" in said
    assert "HF_DATASETS_OFFLINE=0" in said


def test_other_models_are_refused(trained, capsys):
    assert main(["--model", str(trained("vqa").run), "--tasks", "choice"]) == 2
    assert "task VQA: name a checkpoint of LanguageModeling" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    assert main(["--model", "a", "--tasks", "choice"]) == 2
    assert "pip install 'mhmoe-mm[lm-eval]'" in capsys.readouterr().err
