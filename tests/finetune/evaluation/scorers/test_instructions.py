"""IFEval's instructions, each with an answer that follows it and one that does not."""

from typing import Any

import pytest

from hybrid_ft.finetune.evaluation.scorers.instructions import CHECKS, follows

CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "punctuation:no_comma": ({}, ["one two"], ["one, two"]),
    "length_constraints:number_words": ({"relation": "at least", "num_words": 3}, ["a b c"], ["a b"]),
    "length_constraints:number_sentences": (
        {"relation": "less than", "num_sentences": 3},
        ["One. Two?"],
        ["One. Two! Three."],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["one\n***\ntwo"],
        ["one", "one\n***\n\n***\ntwo"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"},
        ["so\n\nIt, was"],
        ["so\n\nwas it", "it"],
    ),
    "keywords:existence": ({"keywords": ["dog", "day"]}, ["A Dog today"], ["A dog"]),
    "keywords:forbidden_words": ({"forbidden_words": ["damn"]}, ["damnation"], ["Damn it"]),
    "keywords:frequency": ({"relation": "less than", "keyword": "a", "frequency": 2}, ["a"], ["a A"]),
    "keywords:letter_frequency": (
        {"let_relation": "at least", "letter": "j", "let_frequency": 2},
        ["Jj"],
        ["j"],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* **two**"],
        ["*one* two", "** ** *a*"],
    ),
    "detectable_format:title": ({}, ["<<Title>>\ntext"], ["<Title>", "<< >>"]),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, ["* a\n- b"], ["* a", "* a\n* b\n* c"]),
    "detectable_format:json_format": ({}, ['```json\n{"a": 1}\n```', "[1]"], ["{a: 1}"]),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na"],
    ),
    "detectable_format:constrained_response": ({}, ["My answer is no."], ["No."]),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, ["[a] [b]"], ["[a] (b)"]),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, ["x\nP.P.S more"], ["x\nP.S. more"]),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say this"}, ["say this. Yes"], ["Yes. Say this"]),
    "combination:two_responses": ({}, ["one\n******\ntwo"], ["one", "one\n******\none"]),
    "startend:quotation": ({}, ['"quoted"'], ['"half', '"']),
    "startend:end_checker": ({"end_phrase": "The End"}, ["so. the end "], ["the end."]),
    "change_case:english_lowercase": ({}, ["all low"], ["All"]),
    "change_case:english_capital": ({}, ["ALL UP"], ["ALL up"]),
    "change_case:capital_word_frequency": (
        {"capital_relation": "at least", "capital_frequency": 2},
        ["AN ACE hit"],
        ["AN ace"],
    ),
}


def test_every_check_has_a_case() -> None:
    assert set(CASES) == set(CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_checks(name: str) -> None:
    arguments, right, wrong = CASES[name]
    assert [follows(text, [name], [arguments])["prompt"] for text in right] == [1.0] * len(right)
    assert [follows(text, [name], [arguments])["prompt"] for text in wrong] == [0.0] * len(wrong)


def test_several_instructions() -> None:
    names = ["punctuation:no_comma", "change_case:english_capital"]
    assert follows("all low", names, [{}, {}]) == {"prompt": 0.0, "instruction": 0.5}
    assert follows(" ", names, [{}, {}]) == {"prompt": 0.0, "instruction": 0.0}
