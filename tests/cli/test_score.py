"""`cpfast score`, and `cpfast train --policy tokens` by what it writes."""

import csv
import json

import pytest
import safetensors
import torch

import cpfast
from cpfast import cli

QUICK = ["--epochs", "2", "--batch-size", "4", "--threads", "1", "--no-energy", "--no-plot", "-q"]
TOKENS = ["--method", "prune", "--repeats", "1", "--policy", "tokens"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files of text, and the folder of a run on the first."""
    root = tmp_path_factory.mktemp("texts")
    g = torch.Generator().manual_seed(0)
    words = ["the", "cat", "sat", "on", "a", "mat"]
    for name, size in (("clean", 450), ("other", 550)):
        drawn = torch.randint(len(words), (size,), generator=g).tolist()
        (root / f"{name}.txt").write_text(" ".join(words[place] for place in drawn))
    (root / "new.txt").write_text("xyz" * 600)
    run = root / "run"
    assert cli.main(["train", "--data", str(root / "clean.txt"), *QUICK, "--out", str(run)]) == 0
    return root, run


def fails(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    return output.err


def test_score_then_train_by_it(texts, tmp_path, capsys):
    root, run = texts
    file = tmp_path / "other.safetensors"
    data = str(root / "other.txt")
    assert cli.main(["score", str(run), "--data", data, "--out", str(file)]) == 0
    out = capsys.readouterr().out
    with safetensors.safe_open(file, "pt") as scores:
        about = scores.metadata()
        loss, tokens = scores.get_tensor("loss"), scores.get_tensor("token_loss")
        assert set(scores.keys()) == {"loss", "el2n", "margin", "correct", "token_loss"}
    assert out.splitlines()[0].startswith(
        f"other.txt: {len(loss)} train samples of 128 tokens; mean loss {loss.mean():.4f}, of a"
    )
    assert out.splitlines()[1] == f"scores  {file}"
    torch.testing.assert_close(tokens.mean(1), loss)
    assert about["data"] == "other.txt" and about["cpfast"] == cpfast.__version__
    assert about["run"] == str(run) and about["epoch"] == "2" and about["split"] == "train"
    given = ["train", "--data", data, *QUICK, *TOKENS]
    pruned = tmp_path / "pruned"
    assert cli.main([*given, "--reference", str(file), "--out", str(pruned)]) == 0
    out = capsys.readouterr().out
    assert f"; tokens chosen against {file}\n" in out
    assert json.loads((pruned / "config.json").read_text())["reference"] == str(file)
    config = str(pruned / "config.toml")
    for name, arguments in (
        ("again", ["train", "--config", config, "-q"]), ("own", given), ("all", given[:-4]),
    ):  # fmt: skip
        assert cli.main([*arguments, "--out", str(tmp_path / name)]) == 0
    losses = {
        name: json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])[
            "test_loss"
        ]
        for name in ("pruned", "again", "own", "all")
    }
    assert losses["again"] == losses["pruned"] and len(set(losses.values())) == 3
    # What is scored, and resumed, needs no more.
    assert cli.main(["eval", str(pruned), "--no-plot"]) == 0
    resumed = ["train", "--resume", "--out", str(pruned), "--epochs", "3", "-q"]
    assert cli.main([*resumed, "--reference", str(file)]) == 0
    error = fails(capsys, "train", "--data", str(root / "clean.txt"), *QUICK, *TOKENS,
                  "--reference", str(file), "--out", str(tmp_path / "none"))  # fmt: skip
    assert f"--reference {file}: losses of" in error and "clean.txt has" in error
    assert not (tmp_path / "none").exists()


def test_compare_by_it(texts, tmp_path, capsys):
    root, run = texts
    files = {}
    for name in ("clean", "other"):
        files[name] = str(tmp_path / f"{name}.safetensors")
        data = str(root / f"{name}.txt")
        assert cli.main(["score", str(run), "--data", data, "--out", files[name]]) == 0
    out = tmp_path / "compared"
    quick = [*QUICK[:-1], "--data", str(root / "other.txt")]
    command = ["compare", *quick, "--repeats", "2", "--seeds", "1", "--out", str(out)]
    arms = ["--arms", "k1,k1+tokens"]
    for wrong, message in (
        (["--arms", "k1"], "--reference goes with arms whose policy selects among tokens: tokens, "
         "k1+tokens, detector+tokens; got --arms full,k1\n"),
        ([*arms, "--label-smoothing", "0.1"], "--reference: its losses are those of the labels; "),
        ([*arms, "--labels", "random"], "--reference: its losses are those of the text; got "),
    ):  # fmt: skip
        error = fails(capsys, *command, *wrong, "--reference", files["other"])
        assert message in error
    error = fails(capsys, *command, *arms, "--reference", files["clean"])
    assert f"--reference {files['clean']}: losses of" in error and "other.txt has" in error
    error = fails(capsys, *command, *arms, "--reference", str(tmp_path / "none"))
    assert f"--reference {tmp_path / 'none'}: no such file" in error
    assert not (out / "results.json").exists()  # all of that before anything is run

    assert cli.main([*command, *arms, "--reference", files["other"]]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"; tokens chosen against {files['other']}" in printed
    assert (
        "k1+tokens: tokens are chosen by their losses and those of other.safetensors, whose model "
        "and scores are not counted." in printed
    )
    given = {
        arm: json.loads((out / "seed0" / arm / "config.json").read_text())["reference"]
        for arm in ("full", "k1", "k1+tokens")
    }
    assert given == {"full": None, "k1": None, "k1+tokens": files["other"]}
    assert cli.main(["train", "--preset", "paper", *quick, *TOKENS, "--reference", files["other"],
                     "--out", str(tmp_path / "alone")]) == 0  # fmt: skip
    ends = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["test_loss"]
        for folder in (out / "seed0" / "k1+tokens", tmp_path / "alone")
    ]
    assert ends[0] == ends[1]

    for other in ([], ["--reference", files["clean"]]):
        given = other[-1] if other else None
        error = fails(capsys, *command, *arms, *other)
        if other:
            assert f"--reference {given}: losses of" in error
        else:
            assert f"--reference {given} (the run has {files['other']})" in error
    more = [*command, "--arms", "k1,k1+tokens,tokens", "--reference", files["other"]]
    assert cli.main(more) == 0
    assert "3 of 4 runs done" in capsys.readouterr().out


def test_scores_as_csv_and_where_they_go(texts, tmp_path, capsys):
    root, run = texts
    assert cli.main(["score", str(run), "--half"]) == 0
    file = run / "scores-clean.txt.safetensors"
    with safetensors.safe_open(file, "pt") as scores:
        loss, tokens = scores.get_tensor("loss"), scores.get_tensor("token_loss")
    assert tokens.dtype == torch.float16 and loss.dtype == torch.float32
    assert cli.main(["score", str(run), "--out", str(tmp_path / "scores.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert list(rows[0]) == ["sample", "loss", "el2n", "margin", "correct"]
    assert [int(row["sample"]) for row in rows] == list(range(len(loss)))
    for row, value in zip(rows, loss.tolist(), strict=True):
        assert float(row["loss"]) == pytest.approx(value, rel=1e-5)
    assert cli.main(["score", str(run), "--split", "test", "--best"]) == 0
    assert (run / "scores-clean.txt-test-best.safetensors").is_file()
    error = fails(capsys, "train", "--data", str(root / "clean.txt"), *QUICK, *TOKENS,
                  "--reference", str(run / "scores-clean.txt-test-best.safetensors"))  # fmt: skip
    assert "scores of the test split; cpfast score --split train" in error


def test_what_score_cannot_do_is_said_in_a_line(texts, tmp_path, capsys):
    root, run = texts
    assert "no trained model here" in fails(capsys, "score", str(tmp_path))
    error = fails(capsys, "score", str(run), "--data", str(root / "new.txt"))
    assert "the model does not know character 'x'" in error
    assert "no text" in fails(capsys, "score", str(run), "--data", "digits")
    error = fails(capsys, "score", str(run), "--out", "scores.txt")
    assert "--out scores.txt: expected a name that ends in .safetensors or .csv" in error
    error = fails(capsys, "score", str(run), "--out", str(tmp_path / "no" / "a.csv"))
    assert f"no folder {tmp_path / 'no'}" in error
    error = fails(capsys, "train", *TOKENS, "--out", str(tmp_path / "none"))
    assert error == (
        "cpfast: error: --policy tokens selects among the tokens of text, and digits has none\n"
    )
    error = fails(capsys, "train", "--reference", str(tmp_path / "a"))
    assert f"--reference {tmp_path / 'a'}: no such file" in error


def test_images_are_scored_too(tmp_path, capsys):
    run = tmp_path / "digits"
    arguments = ["train", "--epochs", "1", "--limit", "64", "--batch-size", "32", *QUICK[4:]]
    assert cli.main([*arguments, "--out", str(run)]) == 0
    assert cli.main(["score", str(run)]) == 0
    assert "digits: 64 train samples; mean loss" in capsys.readouterr().out
    file = run / "scores-digits.safetensors"
    with safetensors.safe_open(file, "pt") as scores:
        assert set(scores.keys()) == {"loss", "el2n", "margin", "correct"}
        assert scores.get_tensor("margin").shape == (64,)
