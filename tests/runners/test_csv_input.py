"""Reading operators' lists: right numbers, every problem, nothing half-read."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from haulier.exceptions import ValidationError
from haulier.runners import csv_input
from haulier.runners.csv_input import MAX_ACCOUNT, ProblemList, read_accounts, read_rows


def refused(source):
    with pytest.raises(ValidationError) as caught:
        read_accounts(source)
    return [(problem.line, problem.field, problem.reason) for problem in caught.value.problems]


@pytest.mark.parametrize(
    "text",
    [
        "account\nada\nbob\n",
        "ACCOUNT\r\nada\r\nbob\r\n",
        "account\rada\rbob",
        "\ufeffaccount\nada\nbob\n",
        "ada\nbob",
        "\n\n  \nada\n\n   \nbob\n\n",
        "username\nada\nbob\n",
        "username,account\nx,ada\ny,bob\n",
        "id,account,note\n1,ada,\n2,bob,hi\n",
        "id;account\n1;ada\n2;bob\n",
        "id\tAccount\n1\tada\n2\tbob\n",
        'account,note\n"ada","a, b"\n" bob ",""\n,\n',
    ],
)
def test_reads_accounts_however_they_are_laid_out(text):
    assert read_accounts(text) == ["ada", "bob"]


def test_reads_text_bytes_files_and_streams(tmp_path):
    data = "account\nżółć\n".encode()
    path = tmp_path / "accounts.csv"
    path.write_bytes(data)

    for source in (data.decode(), data, path, io.BytesIO(data)):
        assert read_accounts(source) == ["żółć"]


def test_an_account_may_be_called_like_another_column_or_hold_a_semicolon():
    assert read_accounts("account\nid\nusername\n") == ["id", "username"]
    assert read_accounts("a;b\nc;d\n") == ["a;b", "c;d"]


def test_names_three_bad_lines_among_a_hundred():
    lines = ["account,note", *(f"user{number},n" for number in range(2, 102))]
    lines[16] = ",no name"
    lines[40] = "user12,again"
    lines[99] = "x" * 201 + ","

    assert refused("\n".join(lines)) == [
        (17, "account", "is empty"),
        (41, "account", "is the same as on line 12"),
        (100, "account", f"has 201 characters, at most {MAX_ACCOUNT} are allowed"),
    ]


def test_numbers_are_those_of_the_file_with_its_blank_lines():
    assert refused("\naccount\n\nada\n\n\nada\n") == [(7, "account", "is the same as on line 4")]


def test_a_line_that_is_not_utf8_is_named_and_the_others_are_still_checked():
    problems = refused(b"account\nada\n\xffbob\nada\n")

    assert problems == [
        (3, "account", "byte 1 of the line is not UTF-8 text"),
        (4, "account", "is the same as on line 2"),
    ]


def test_an_open_quote_spoils_its_own_line_only():
    assert refused('account,note\n"ada,x\nbob,y\nbob,z\n') == [
        (2, "account", "a quote is opened and not closed on this line"),
        (4, "account", "is the same as on line 3"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("account,note\nada\n", 2, "has 1 columns, but the header has 2"),
        ("account,note\nada,a,b\n", 2, "has 3 columns, but the header has 2"),
        ("ada\nbob,x\n", 2, "has 2 columns, but no header names 'account'"),
        ("ada,x\n", 1, "has 2 columns, but no header names 'account'"),
        ('account\n""\n', 2, "is empty"),
        ("account\na\x00b\n", 2, "holds a control character"),
        ("account\na\u2028b\n", 2, "holds a control character"),
        ("account,x\nada,1\n,\n ,2\n", 4, "is empty"),
        ("account,Account\nada,ada\n", 1, "is the name of more than one column"),
    ],
)
def test_refuses_a_bad_line(text, line, reason):
    ((found, _, why),) = refused(text)
    assert (found, why) == (line, reason)


@pytest.mark.parametrize("text", ["", "\n\n", "account\n", "\ufeff"])
def test_refuses_a_list_without_accounts(text):
    assert refused(text) == [(None, "account", "there is not one in the list")]


def test_refuses_what_cannot_be_read_as_a_whole(tmp_path, monkeypatch):
    assert "UTF-16" in refused("account\nada".encode("utf-16"))[0][2]
    assert "No such file" in refused(tmp_path / "absent.csv")[0][2]
    assert "directory" in refused(tmp_path)[0][2]
    monkeypatch.setattr(csv_input, "MAX_INPUT", 10)
    assert "longer than 10 bytes" in refused("account\nada\n")[0][2]


def test_a_surrogate_in_a_text_is_a_bad_line_not_a_crash():
    assert refused("account\nada\n\ud800\n")[0][0] == 3


def test_tells_a_hundred_problems_and_counts_the_rest():
    problems = refused("account\n" + "ada\n" * 131)

    assert len(problems) == 101
    assert problems[0][0] == 3
    assert problems[-1] == (None, "", "… and 30 more")


def test_rows_carry_wanted_columns_only_and_absent_ones_as_empty():
    problems = ProblemList()
    text = "Label,proxy,note\nx,http://a:1,n\n,http://b:2,n\n"
    rows = list(read_rows(text, required="proxy", optional=("label", "zone"), problems=problems))
    bare = list(read_rows("http://a:1\n", required="proxy", optional=("zone",), problems=problems))

    assert [(row.line, row.values) for row in rows] == [
        (2, {"proxy": "http://a:1", "label": "x", "zone": ""}),
        (3, {"proxy": "http://b:2", "label": "", "zone": ""}),
    ]
    assert bare[0].values == {"proxy": "http://a:1", "zone": ""}
    assert not problems
    problems.raise_if_any("there are none")


@given(st.binary(max_size=200))
def test_any_bytes_give_accounts_or_a_refusal_with_reasons(data):
    try:
        accounts = read_accounts(data)
    except ValidationError as error:
        lines = {problem.line for problem in error.problems}
        last = len(data.splitlines())
        assert all(line is None or 1 <= line <= last for line in lines)
        return
    assert accounts
    assert len(set(accounts)) == len(accounts)


@given(
    st.lists(
        st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=20).filter(
            lambda name: name.casefold() not in {"account", "username"}
        ),
        min_size=1,
        unique=True,
    )
)
def test_what_was_written_is_read(names):
    assert read_accounts("account\n" + "\n".join(names)) == names
