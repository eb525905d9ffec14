"""`sftkit audit`: formats, exit codes, and what it can be told."""

import json

import pytest
from typer.testing import CliRunner

from sftkit import cli


def run(monkeypatch, capsys, *arguments):
    """Run the command as the shell does; give exit code, stdout, stderr."""
    monkeypatch.setattr("sys.argv", ["sftkit", "audit", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(cli.start())
    out, err = capsys.readouterr()
    return caught.value.code, out, err


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.csv"
    path.write_text("question,answer\nWhere is it?,There\nWho are you?,A lamp\n", encoding="utf-8")
    return path


@pytest.fixture
def faulty(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("question,answer\nWhere is it?,\nWho are you?,A lamp\n", encoding="utf-8")
    return path


def test_a_sound_file_exits_with_0(good, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, good)
    assert (code, err) == (0, "")
    assert out.startswith("good.csv: No errors in 2 rows\n")
    assert out.endswith("\nReady for training.\n")


def test_a_faulty_file_exits_with_1_and_names_the_line(faulty, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, faulty)
    assert (code, err) == (1, "")
    assert "D23 bad.csv:2" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing.csv",), "nothing.csv"),
        (("good.csv", "--max-tokens", "8"), "add --model NAME"),
        (("good.csv", "--column", "question"), "NAME=VALUE"),
        (("good.csv", "--column", "question=Frage"), "Frage"),
        (("good.csv", "--as-format", "csv"), "csv"),
        (("good.csv", "--encoding", "cp12520"), "cp12520"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_to_do(
    arguments, words, good, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--task", "--format"])
def test_an_unknown_choice_exits_with_2(option, good):
    result = CliRunner().invoke(cli.app, ["audit", str(good), option, "poem"])
    assert result.exit_code == 2


def test_json_has_the_promised_keys(faulty, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, faulty, "--format", "json")
    plain = json.loads(out)
    assert (code, plain["rows"]) == (1, 2)
    keys = ["code", "severity", "where", "field", "count", "message", "fix"]
    assert [list(finding) for finding in plain["findings"]] == [keys] * len(plain["findings"])
    assert [f["where"] for f in plain["findings"] if f["code"] == "D23"] == [["bad.csv:2"]]


def test_html_goes_to_a_file(faulty, tmp_path, monkeypatch, capsys):
    page = tmp_path / "audit.html"
    code, out, _ = run(monkeypatch, capsys, faulty, "--format", "html", "--out", page)
    assert (code, out) == (1, "")
    assert "<h1>1 error in 2 rows</h1>" in page.read_text(encoding="utf-8")


def test_columns_format_encoding_and_task_can_be_said(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.csv"
    text = "Frage,Antwort,Note\nWo ist es?,Drüben,1\nWer bist du?,Ein Löffel,2\n"
    path.write_bytes(text.encode("cp1252"))
    options = ("--encoding", "cp1252", "--column", "question=Frage", "--column", "answer=Antwort")
    code, out, _ = run(monkeypatch, capsys, path, *options, "--task", "chat")
    assert code == 0
    assert "'Frage'" in out
    assert "'Antwort'" in out


@pytest.mark.model
def test_a_model_name_brings_its_tokens_and_its_template(good, monkeypatch, capsys):
    options = ("--model", "smollm2-135m", "--max-tokens", "40", "--format", "json")
    code, out, _ = run(monkeypatch, capsys, good, *options)
    plain = json.loads(out)
    assert code == 0
    found = {finding["code"]: finding["message"] for finding in plain["findings"]}
    assert "You are a helpful AI assistant named SmolLM" in found["D32"]
    assert plain["facts"]["lengths"]["unit"] == "tokens"
    assert plain["facts"]["limit"] == 40
