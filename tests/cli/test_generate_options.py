# SPDX-License-Identifier: Apache-2.0
"""``rwkv-cpu generate``: form of the answer, log-probabilities, drafts, more sampling."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from rwkv_cpu.cli.chat import command as chat
from rwkv_cpu.cli.generate import command


def run(*arguments: str):
    return CliRunner().invoke(command, ["-p", "User: Hi!\n\nAssistant:", *arguments])


def test_help_lists_the_rarer_settings_under_headings():
    for one in (command, chat):
        text = CliRunner().invoke(one, ["--help"]).output
        assert text.index("\nOptions:") < text.index("--temperature") < text.index("\nAgainst repetition:")
        assert (
            text.index("\nAgainst repetition:") < text.index("--dry-base") < text.index("\nMore about choosing tokens:")
        )


def test_answers_have_the_form_that_was_asked_for(tmp_path):
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}}, "required": ["n"],'
        ' "additionalProperties": false}'
    )
    assert set(json.loads(run("--json-schema", str(schema), "-s", "1").stdout)) == {"n"}
    assert re.fullmatch("[0-9]{4}-[0-9]{2}\n", run("--regex", "[0-9]{4}-[0-9]{2}").stdout)
    grammar = tmp_path / "answer.gbnf"
    grammar.write_text('root ::= "yes" | "no"\n')
    assert run("--grammar", str(grammar)).stdout in ("yes\n", "no\n")
    cut = run("--json-mode", "-n", "2")
    assert "cut short" in cut.stderr


def test_wrong_forms_are_wrong_use(tmp_path):
    pytest.importorskip("llguidance")
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{")
    for arguments in (["--regex", "("], ["--json-schema", str(wrong)], ["--json-mode", "--regex", "a"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.output


def test_logprobs_are_in_the_json():
    result = json.loads(run("--json", "--logprobs", "2", "-n", "5", "-s", "1").stdout)
    assert len(result["logprobs"]) == len(result["tokens"])
    first = result["logprobs"][0]
    assert first["id"] == result["tokens"][0]
    assert first["logprob"] <= first["top"][0]["logprob"] <= 0
    assert len(first["top"]) == 2


def test_drafts_do_not_change_the_text():
    texts = {run("-s", "3", "-n", "30", *more).stdout for more in ([], ["--no-speculative"], ["--draft-model", "demo"])}
    assert len(texts) == 1


def test_biases_and_bans_reach_the_sampler():
    plain = json.loads(run("--json", "--temp", "0", "-n", "1").stdout)["tokens"]
    assert json.loads(run("--json", "--temp", "0", "-n", "1", "--ban", str(plain[0])).stdout)["tokens"] != plain
    assert json.loads(run("--json", "--temp", "0", "-n", "1", "--logit-bias", "66=100").stdout)["tokens"] == [66]
    assert run("--logit-bias", "x").exit_code == 2
