"""The words of a command line: lists, --config, --json, what is missing, and verbs added from outside."""

import json
import os
import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.cli.main import SHOW, VERBS, Verb, app, main, register, with_flags
from probekit.cli.usage import prepared
from tests.commands import write_features


@pytest.fixture
def features(tmp_path):
    return write_features(tmp_path / "f.h5", (2, 2))


def parsed(*words):
    _, bound, *_ = app.parse_args(prepared(app, list(words)), exit_on_error=False, print_error=False)
    return bound.arguments


numbers = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4)


@settings(deadline=None, max_examples=25)
@given(numbers, st.integers(0, 3))
def test_a_list_reads_alike_however_it_is_written(Cs, how):
    text = [str(C) for C in Cs]
    words = [
        ["--Cs", *text],
        ["--Cs", ",".join(text)],
        [f"--Cs={','.join(text)}"],
        [word for C in text for word in ("--Cs", C)],
    ][how]
    assert parsed("sweep", "f.h5", *words)["Cs"] == tuple(Cs)


def test_a_pair_takes_a_comma_too_and_a_path_keeps_its_own(tmp_path, monkeypatch):
    assert parsed("train", "digits", "--out", "r", "--betas", "0.8,0.9")["betas"] == (0.8, 0.9)
    assert parsed("train", "digits", "--out", "r", "--betas=0.8,0.9")["betas"] == (0.8, 0.9)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert parsed("study", "pixels", "--on", "a,b", "--out", "s")["on"] == ("a,b",)
    assert parsed("study", "pixels", "--on", "a,c", "--out", "s")["on"] == ("a", "c")


def test_arguments_before_the_flags_are_a_list_too():
    bound = parsed("study", "pixels:4,histogram:4", "--on", "digits", "--out", "s")
    assert bound["encoders"] == ("pixels:4", "histogram:4")
    assert parsed("study", "a=igpt:r,b=pixels", "--on", "digits", "--out", "s")["encoders"] == ("a=igpt:r", "b=pixels")
    one = "torch:m:f#layers=0,2"
    assert parsed("study", one, "--on", "digits", "--out", "s")["encoders"] == (one,)


def test_an_argument_too_many_and_help_as_a_word(capsys):
    assert main(["sweep", "a.h5", "b.h5"]) == 2
    assert "takes no further argument 'b.h5'" in capsys.readouterr().err
    assert main(["help", "sweep"]) == 0
    assert "probekit sweep" in capsys.readouterr().out
    assert main(["version"]) == 0


def test_too_few_values_of_a_flag_are_called_so(capsys):
    assert main(["plot", "r", "--out", "a.svg", "--ylim", "80"]) == 2
    assert "--ylim takes 2 values, and fewer were given" in capsys.readouterr().err


def test_a_comma_within_one_value_is_left_alone():
    words = ["plot", "results", "--out", "a.svg", "--labels", "igpt=Ours, small"]
    assert parsed(*words)["labels"] == ("igpt=Ours, small",)
    assert parsed(*words[:-1], "igpt=Ours,pixels=Pixels")["labels"] == ("igpt=Ours", "pixels=Pixels")
    words = ["extract", "pixels", "cifar10", "--out", "f.h5", "--test", "a=set#classes=1,2"]
    assert parsed(*words)["test"] == ("a=set#classes=1,2",)


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_config_file_stands_for_words_and_the_line_wins(suffix, tmp_path):
    content = {"features": "f.h5", "Cs": [0.1, 1], "seeds": 2, "train-rows": 50, "series": None, "layers": ["00", "01"]}
    text = json.dumps(content) if suffix == "json" else "".join(f"{k}: {json.dumps(v)}\n" for k, v in content.items())
    file = tmp_path / f"run.{suffix}"
    file.write_text(text)
    found = parsed("sweep", "--config", str(file), "--seeds", "3")
    assert (found["features"].name, found["Cs"], found["seeds"], found["train_rows"]) == ("f.h5", (0.1, 1.0), 3, (50,))
    assert found["layers"] == ("00", "01")
    assert parsed("sweep", "other.h5", f"--config={file}")["features"].name == "other.h5"


@pytest.mark.parametrize("value", ["!!timestamp x", "!!int x", "!!python/object:os.system x", "!!set x", "&a [*a, *b]"])
def test_a_tag_that_yaml_cannot_build_is_one_sentence(value, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(f"steps: {value}\n")
    assert main(["train", "digits", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "run.yaml cannot be read" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("steps: true", "steps is True; expected something other than true or false"),
        ("steps: false", "steps is False"),
        ("tensorboard: 'no'", "tensorboard is 'no'; expected true or false"),
        ("dataset: yes\ndataset: no", "the key 'dataset' occurs twice"),
        ("n-layer: 1\nn_layer: 2", "'n-layer' and 'n_layer' are the same flag"),
        ("config: other.yaml", "no flag config"),
        ("steps: 1:30", "--steps is '1:30'"),
        ("steps: 2.6", "--steps is '2.6'; expected a whole number"),
        ("steps: 0x10", "--steps is '0x10'"),
        ("steps: ~\nbetas: [0.9]", "--betas takes 2 values"),
    ],
)
def test_what_a_config_file_cannot_mean(content, words, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    assert main(["train", "digits", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_config_file_means_what_is_written(tmp_path):
    content = "on: [digits]\nencoders: no\nlimit: 011\nCs: [1e-3]\nout: 2020-01-01\ntest: null\n"
    (tmp_path / "run.yaml").write_text(content)
    found = parsed("study", "--config", str(tmp_path / "run.yaml"))
    assert (found["on"], found["encoders"], found["limit"], found["Cs"]) == (("digits",), ("no",), 11, (0.001,))
    assert str(found["out"]) == "2020-01-01"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("sweep f.h5 --seeds 2.6", "--seeds is '2.6'; expected a whole number from 1 to 10000"),
        ("sweep f.h5 --seeds None", "--seeds is 'None'"),
        ("sweep f.h5 --Cs None", "--Cs is 'None'"),
        ("sweep f.h5 --Cs=[1,2]", "--Cs is '[1'"),
        ("sweep f.h5 --train-rows 1.5,2", "--train-rows is '1.5'"),
        ("sweep f.h5 --Cs", "--Cs takes one or more values, but none was given"),
        ("sweep f.h5 --layers --out x", "--layers takes one or more values, but none was given"),
        ("sweep f.h5 --series=", "an argument is empty"),
        ("sweep f.h5 --config a.yaml --config b.yaml", "--config was given twice"),
        ("sweep --features f.h5", "`probekit sweep` takes FEATURES without a flag"),
        ("study --encoder=pixels --on digits --out s", "`probekit study` takes ENCODERS without a flag"),
        ("extract digits pixels --out f.h5", "'pixels' is an encoder, not a data set; `probekit extract ENCODER"),
        ("extract digits igpt:run --out f.h5", "'igpt:run' is an encoder, not a data set"),
        ("train digits --out x --steps", "--steps takes a value, and none was given"),
        ("train digits --out x --keep-at 1.5", "--keep-at is '1.5'"),
        ("plot r --out a.svg --labels a=b --labels a=c", "--labels names 'a' twice"),
        ("report r --runs a=b,c --runs a=d", "--runs names 'a' twice"),
        ("table r --out a.tex --label }\\input{x}", "--label is"),
    ],
)
def test_a_line_that_cannot_be_meant(line, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    assert words in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_numbers_may_be_written_in_several_ways():
    found = [parsed("sweep", "f.h5", "--seeds", text)["seeds"] for text in ("1e3", "1_000", "+10", "5.0")]
    assert found == [1000, 1000, 10, 5]
    assert parsed("plot", "r", "--out", "a.svg", "--ylim=-5,5")["ylim"] == (-5.0, 5.0)


def test_what_a_training_run_wrote_is_a_config(tmp_path):
    line = ["--n-layer", "1", "--n-embd", "8", "--n-head", "2", "--resolution", "6", "--n-colours", "4", "--steps", "1"]
    quick = ["--batch-size", "4", "--limit", "20", "--no-tensorboard", "-q"]
    assert main(["train", "digits", "--out", str(tmp_path / "a"), *line, *quick]) == 0
    again = ["train", "digits", "--out", str(tmp_path / "b"), "--config", str(tmp_path / "a" / "config.json")]
    assert main([*again, "--limit", "20", "-q"]) == 0
    first, second = ((tmp_path / name / "config.json").read_bytes() for name in "ab")
    assert first == second


def test_what_a_study_wrote_is_a_config(tmp_path):
    line = ["study", "mine=pixels", "--on", "digits", "--limit", "60", "--Cs", "1e-3,1", "--window", "0", "-q"]
    (tmp_path / "map.csv").write_text("\n".join(f"{k},{k}" for k in range(10)))
    test = ["--test", f"again=wandering-digits#classes={tmp_path / 'map.csv'}"]
    quick = ["--protocol", "dinov2-45", "--no-controls"]
    assert main([*line, *test, *quick, "--out", str(tmp_path / "a")]) == 0
    assert main(["study", "--config", str(tmp_path / "a" / "study.json"), "--out", str(tmp_path / "b"), "-q"]) == 0
    first, second = ((tmp_path / name / "study.json").read_bytes() for name in "ab")
    assert first == second


def test_a_wrong_key_or_file_is_refused(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("seed: 3\n")
    assert main(["sweep", "f.h5", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "has no flag seed. Did you mean seeds?" in capsys.readouterr().err
    assert main(["sweep", "f.h5", "--config", str(tmp_path / "absent.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_everything_that_is_missing_is_named_at_once(capsys):
    assert main(["extract"]) == 2
    assert (
        "`probekit extract` needs ENCODER, DATASET and --out. See `probekit extract --help`." in capsys.readouterr().err
    )
    assert main(["study", "pixels"]) == 2
    assert "needs --on and --out" in capsys.readouterr().err.replace("--out and --on", "--on and --out")


def test_a_wrong_choice_names_the_choices_and_the_verbs_help(features, capsys):
    assert main(["sweep", str(features), "--backend", "magic"]) == 2
    error = capsys.readouterr().err
    assert "torch" in error
    assert "cuml" in error
    assert "`probekit sweep --help`" in error


def test_json_is_all_of_stdout(features, capsys):
    command = ["sweep", str(features), "--protocol", "dinov2-45", "--Cs", "0.01,1"]
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert [record["layers"] for record in answer["records"]] == ["00", "01"]
    assert all(0 <= record["top1"] <= 1 for record in answer["records"])
    assert main(["verify", str(features), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["errors"] == []
    assert main(["inspect", str(features), "--json"]) == 0
    assert [row["layer"] for row in json.loads(capsys.readouterr().out)] == ["00", "01"]
    assert main(["datasets", "--json"]) == 0
    assert "digits" in {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_quiet_and_verbose(features, capsys):
    command = ["sweep", str(features), "--protocol", "dinov2-45", "--Cs", "0.01,1"]
    assert main([*command, "-v"]) == 0
    assert "plan: " in capsys.readouterr().err
    assert main([*command, "-q"]) == 0
    shown = capsys.readouterr()
    assert "plan: " not in shown.err + shown.out
    assert "records in" not in shown.err
    assert "made on noise" in shown.out


def test_ctrl_c_says_how_far_the_work_was(features, monkeypatch, capsys):
    from probekit.evaluate import sweep as module

    def interrupted(*args, progress, **settings):
        progress(3, 9)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sweep", interrupted)
    assert main(["sweep", str(features)]) == 130
    assert "interrupted at sweep 3 of 9 fits; finished work is saved" in capsys.readouterr().err


def test_a_public_function_from_outside_is_a_verb(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy_verb.py").write_text(
        "from pathlib import Path\n\n\n"
        "def count(file: Path, times: int = 2, progress=None) -> dict:\n"
        '    """Count words.\n\n    Parameters\n    ----------\n    file : Path\n        A text file.\n'
        '    times : int\n        How often.\n    """\n'
        '    return {"words": times * len(Path(file).read_text().split())}\n'
    )
    (tmp_path / "text").write_text("a b c")
    monkeypatch.syspath_prepend(str(tmp_path))
    register("count", Verb(SHOW, "Count words.", "toy_verb:count", unit="words"))
    try:
        assert main(["count", str(tmp_path / "text"), "--times", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"words": 9}
        assert main(["count", "--help"]) == 0
        assert "How often." in capsys.readouterr().out
    finally:
        del VERBS["count"]
        del app["count"]
        sys.modules.pop("toy_verb", None)


def test_completion_knows_verbs_and_flags():
    script = app.generate_completion(shell="bash")
    assert "sweep" in script
    assert "--greedy-width" in script


def test_a_reader_that_has_ended_is_no_error(tmp_path):
    """`probekit ... | head`: nothing on stderr, and the exit code of a program that SIGPIPE ends."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "probekit", "datasets"], stdout=write, stderr=subprocess.PIPE, timeout=1200, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_wrong_flag_before_any_verb_has_a_hint(capsys):
    for words, hint in ((["--hlep"], "--help"), (["--versoin"], "--version"), (["-q", "sweep"], "command first")):
        assert main(words) == 2
        assert hint in capsys.readouterr().err


def test_the_librarys_parameters_are_flags_on_the_command_line():
    line = ["compare", "a", "b"]
    assert with_flags("Several series (x): name one as series_a.", line).endswith("name one as --series-a.")
    assert with_flags("keep is 1.0; expected less.", ["sample", "run"]) == "--keep is 1.0; expected less."
    for kept in ("a/series_a/b is no folder.", "There is no layer 'series_a'.", "series_a.csv is empty.", "x is y."):
        assert with_flags(kept, line) == kept


@pytest.mark.parametrize("words", [["train"], ["study"], ["--hlep"], ["datasets", "ls"], ["report", "nothing"]])
def test_a_usage_error_does_not_wait_for_torch(words):
    code = f"import sys; from probekit.cli.main import main; sys.exit(main({words!r}) != 2 or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_wrong_files_and_names_do_not_wait_for_torch(tmp_path, monkeypatch):
    """One process for all of them: each verb that reads a feature file, and the others that begin with an input."""
    monkeypatch.chdir(tmp_path)
    write_features(tmp_path / "f.h5", (2, 2))
    lines = [[verb, "nothing.h5"] for verb, entry in VERBS.items() if entry.features]
    lines += [["sweep", "f.h5", "--protocol", "igtp"], ["concat", "f.h5", "--Cs", "-1"]]
    lines += [["extract", "pixels", "nothing", "--out", "x.h5"], ["sample", "run", "--out", "x.jpg"]]
    lines += [["study", "pixels", "--on", "digits", "--out", "s", "--protocol", "igtp"]]
    each = f"[(main(words), 'torch' in sys.modules) for words in {lines!r}]"
    code = f"import sys; from probekit.cli.main import main; print({each})"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == str([(2, False)] * len(lines))
    assert len(lines) > 8
    assert not {"x.h5", "x.jpg", "s"} & set(os.listdir())


def test_a_flag_that_would_change_nothing_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    declared = [(verb, name, need) for verb, entry in VERBS.items() for name, need in entry.needs.items()]
    assert len(declared) > 8
    for verb, name, need in declared:
        own = {one.field_info.name: one for one in app[verb].assemble_argument_collection()}
        other, _, value = need.partition(" ")
        assert other in {flag for one in own.values() for flag in one.names}, (verb, need)
        assert not value or value in get_args(own[other[2:]].hint), (verb, need)
        flag, files = own[name].name, ["a.png", "--out", "b.png"] if verb in ("sample", "plot") else ["a"]
        files = ["a", "--out", "b"] if verb == "train" else [] if verb == "plan" else files
        assert main([verb, *files, flag, "0.5" if own[name].hint is float else "1"]) == 2
        assert f"{flag} changes nothing without {need}" in capsys.readouterr().err, (verb, name)
    assert not os.listdir()
